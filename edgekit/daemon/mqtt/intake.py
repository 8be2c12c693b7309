"""Parses and submits requests on a thread of its own, so that a long chat does not keep the connection waiting."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from edgekit.daemon.access.access import Access
from edgekit.daemon.access.audit import AuditRecord
from edgekit.daemon.api import CollectedReply, check_model, parse_chat, parse_completion
from edgekit.daemon.api.ignored import collect_ignored
from edgekit.daemon.boot_clock import BootClock
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.preparation import Preparation
from edgekit.daemon.mqtt.requests import Cancellable, OpenRequest
from edgekit.errors import EdgekitError
from edgekit.generation.engine.worker import OnEvent
from edgekit.generation.model import ModelInfo
from edgekit.generation.types import ChatRequest, Event

__all__ = ["NOT_NOW", "Intake", "Submitter"]

_log = logging.getLogger(__name__)

_NOTICEABLE_S = 0.1

NOT_NOW = frozenset({"generation_failed", "not_ready", "overloaded", "shutting_down"})
"""Codes of errors that say nothing about the request: it waits, until the engine takes it."""


class Submitter(Protocol):
    """The part of `EngineWorker` that the MQTT service uses."""

    def submit(self, request: ChatRequest, on_event: OnEvent) -> Cancellable:
        """Queue a request; see `EngineWorker.submit`."""


class Intake:
    """Takes requests one after the other.

    Args:
        worker: Receives them.
        info: The served model.
        metrics: Counts them.
        clock: Tells how long a request has waited.
        happen: Has the service's thread take a step of a request.
        access: Submits requests under the limits of their sender.
    """

    def __init__(
        self,
        worker: Submitter,
        info: ModelInfo,
        metrics: Metrics,
        clock: BootClock,
        *,
        happen: Callable[[OpenRequest, Callable[[], None]], None],
        access: Access,
    ) -> None:
        self._worker = worker
        self._info = info
        self._metrics = metrics
        self._clock = clock
        self._happen = happen
        self._access = access
        self._preparation = Preparation()

    def attach(self, worker: Submitter) -> None:
        """Submit to this worker from now on."""
        self._worker = worker

    def describe(self, info: ModelInfo) -> None:
        """Check requests against this description of the model."""
        self._info = info

    def start(self) -> None:
        """Start the thread."""
        self._preparation.start()

    def stop(self) -> None:
        """Drop what has not begun; what has is abandoned."""
        self._preparation.stop(0.0)

    def seconds_since_heartbeat(self) -> float:
        """Seconds for which the current request is being prepared; 0 without one."""
        return self._preparation.seconds_since_heartbeat()

    def add(
        self,
        request: OpenRequest,
        *,
        on_prepared: Callable[[OpenRequest, EdgekitError | None], None],
        on_event: Callable[[OpenRequest, Event], None],
    ) -> None:
        """Have a request prepared.

        Args:
            request: The request.
            on_prepared: Called on the service's thread once it is submitted, or with the reason why it is refused.
            on_event: Called on the service's thread with each event of its answer.
        """

        def receive(event: Event) -> None:
            self._happen(request, partial(on_event, request, event))

        def prepare() -> None:
            problem = self._prepare(request, receive)
            self._happen(request, partial(on_prepared, request, problem))

        self._preparation.add(prepare)

    def _prepare(self, request: OpenRequest, receive: OnEvent) -> EdgekitError | None:
        """Submit a request, on the thread for that; returns why it is refused."""
        record = AuditRecord(self._access.audit, "mqtt", request_id=request.id, what="chat/request")
        record.identity = request.identity
        problem: EdgekitError | None = None
        try:
            self._submit(request, receive, record)
        except EdgekitError as exc:
            problem = exc
        except Exception:  # noqa: BLE001 - the caller waits for a reply, whatever failed
            _log.exception("mqtt: a request failed")
            problem = EdgekitError("the request failed inside the daemon", hint="see the daemon's log")
        if problem is not None:
            if problem.code in NOT_NOW:
                return problem  # it is submitted again
            record.refused(problem.code)
        record.replied()
        return problem

    def _submit(self, request: OpenRequest, receive: OnEvent, record: AuditRecord) -> None:
        job = request.job
        envelope = messages.read_envelope(messages.read_object(job.body or b""))
        request.stream = envelope.stream
        body = envelope.body
        if job.limit_s is not None:
            waited_s = self._clock.now() - job.came_s
            left_s = job.limit_s - (waited_s if waited_s >= _NOTICEABLE_S else 0.0)
            body = {**body, "deadline_s": max(0.0, left_s)}
        # `prompt` in place of `messages` is a text completion.
        parse = parse_completion if "prompt" in body and "messages" not in body else parse_chat
        with collect_ignored() as ignored:
            chat, options = parse(body, request_id=request.id, client=job.key.reply_to)
        request.ignored = tuple(ignored)
        check_model(options.model, self._info)
        if chat.sampling.seed is None:
            chat = replace(chat, sampling=replace(chat.sampling, seed=job.seed, seed_given=False))
        request.collected, request.logprobs = CollectedReply(chat.n), chat.logprobs is not None
        submit = self._access.bound(self._worker.submit, request.identity, self._info.names, record)
        request.submitted(submit(chat, self._metrics.track("mqtt", receive)))
