"""Parses and submits requests on a thread of its own, so that a long chat does not keep the connection waiting."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from edgekit.daemon.access.access import Access
from edgekit.daemon.access.audit import AuditRecord
from edgekit.daemon.api import CollectedReply, check_model, parse_chat, parse_completion
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.mqtt.crash_marks import MAX_CRASHES, CrashMarks
from edgekit.daemon.mqtt.messages import Envelope
from edgekit.daemon.mqtt.preparation import Preparation
from edgekit.daemon.mqtt.requests import Cancellable, OpenRequest
from edgekit.errors import EdgekitError, RunnerError, UnavailableError
from edgekit.generation.engine.worker import OnEvent
from edgekit.generation.model import ModelInfo
from edgekit.generation.types import ChatRequest, Event

__all__ = ["Intake", "Submitter"]

_log = logging.getLogger(__name__)

_MAX_BYTES = 16 << 20
"""Payloads in preparation. The broker sends more than a few at once at QoS 0 only."""

_NOTICEABLE_S = 0.1


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
        crash_marks: Recognize a request that ends the daemon.
        happen: Has the service's thread take a step of a request.
        access: Submits requests under the limits of their sender.
    """

    def __init__(
        self,
        worker: Submitter,
        info: ModelInfo,
        metrics: Metrics,
        crash_marks: CrashMarks,
        *,
        happen: Callable[[OpenRequest, Callable[[], None]], None],
        access: Access,
    ) -> None:
        self._worker = worker
        self._info = info
        self._metrics = metrics
        self._crash_marks = crash_marks
        self._happen = happen
        self._access = access
        self._preparation = Preparation()
        self._bytes = 0

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
        envelope: Envelope,
        expiry_s: float | None,
        *,
        on_prepared: Callable[[OpenRequest, EdgekitError | None], None],
        on_event: Callable[[OpenRequest, Event], None],
    ) -> None:
        """Have a request prepared.

        Args:
            request: The request.
            envelope: Its payload.
            expiry_s: Its remaining Message Expiry Interval in seconds, if set.
            on_prepared: Called on the service's thread once it is submitted, or with the reason why it is refused.
            on_event: Called on the service's thread with each event of its answer.

        Raises:
            UnavailableError: `overloaded`.
        """
        if self._bytes and self._bytes + request.size > _MAX_BYTES:
            raise UnavailableError(
                "too many requests are being prepared", hint="ask again", code="overloaded", retry_after_s=5.0
            )
        self._bytes += request.size

        def done(problem: EdgekitError | None) -> None:
            self._bytes -= request.size
            on_prepared(request, problem)

        def receive(event: Event) -> None:
            self._happen(request, partial(on_event, request, event))

        def prepare() -> None:
            problem = self._prepare(request, envelope, expiry_s, receive)
            self._happen(request, partial(done, problem))

        self._preparation.add(prepare)

    def _prepare(
        self, request: OpenRequest, envelope: Envelope, expiry_s: float | None, receive: OnEvent
    ) -> EdgekitError | None:
        """Submit a request, on the thread for that; returns why it is refused."""
        record = AuditRecord(self._access.audit, "mqtt", request_id=request.id, what="chat/request")
        record.identity = request.identity
        problem = self._guarded(request, envelope, expiry_s, receive, record)
        if problem is not None:
            record.refused(problem.code)
        record.replied()
        return problem

    def _guarded(
        self,
        request: OpenRequest,
        envelope: Envelope,
        expiry_s: float | None,
        receive: OnEvent,
        record: AuditRecord,
    ) -> EdgekitError | None:
        name = hashlib.sha256(
            repr((request.key[0], request.key[2], request.id if request.id_given else None, request.digest)).encode()
        ).hexdigest()
        try:
            if not self._crash_marks.begin(name):
                return _crashes()
            try:
                self._submit(request, envelope, expiry_s, receive, record)
            finally:
                self._crash_marks.end(name)
        except EdgekitError as exc:
            return exc
        except Exception:  # noqa: BLE001 - the caller waits for a reply, whatever failed
            _log.exception("mqtt: a request failed")
            return EdgekitError("the request failed inside the daemon", hint="see the daemon's log")
        return None

    def _submit(
        self,
        request: OpenRequest,
        envelope: Envelope,
        expiry_s: float | None,
        receive: OnEvent,
        record: AuditRecord,
    ) -> None:
        body = envelope.body
        limits = [limit for limit in (envelope.deadline_s, expiry_s) if limit is not None]
        if limits:
            waited_s = time.monotonic() - request.received
            body = {**body, "deadline_s": max(0.0, min(limits) - (waited_s if waited_s >= _NOTICEABLE_S else 0.0))}
        # `prompt` in place of `messages` is a text completion.
        parse = parse_completion if "prompt" in body and "messages" not in body else parse_chat
        chat, options = parse(body, request_id=request.id, client=request.key[0])
        check_model(options.model, self._info)
        request.collected, request.logprobs = CollectedReply(chat.n), chat.logprobs is not None
        submit = self._access.bound(self._worker.submit, request.identity, self._info.name, record)
        request.submitted(submit(chat, self._metrics.track("mqtt", receive)))


def _crashes() -> RunnerError:
    return RunnerError(
        f"preparing this request has ended the daemon {MAX_CRASHES} times; it is not tried again",
        hint="the daemon's log may show why; change the request, or use another id",
    )
