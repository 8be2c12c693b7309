"""The worker in front of one model; both doors submit here.

A thread drives the `Engine` step by step. It beats a heart once per step (and while idle), from which the service's
watchdog is fed: a worker that hangs stops beating. Requests come in, and are cancelled, from any thread.

What goes wrong in a step beyond a request's own failure fails all open requests, as does a runner that cannot compute
one token any more; the engine starts over with empty slots. Where that happens again and again and nothing is answered
in between, or the slots cannot be emptied, the scheduler has failed: it takes no more requests and says so, until the
process is started anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from edgekit.errors import EdgekitError, RequestError, RunnerError, internal_error
from edgekit.generation.draft_model import MOST
from edgekit.generation.engine import Engine, EngineStats
from edgekit.generation.model import ModelInfo, TextModel
from edgekit.generation.prefix import PrefixCache
from edgekit.generation.request import ChatRequest, Event, Failure, Finish
from edgekit.generation.ticket import OnEvent, Ticket

__all__ = ["OnEvent", "Scheduler", "Ticket"]

logger = logging.getLogger(__name__)

_IDLE_S = 1.0
# A step that hangs longer than this at the very end is left behind with its thread.
_JOIN_S = 60.0
# Faults with no answer between them after which the engine is given up.
_MOST_FAULTS = 3


class Scheduler:
    """The queue and its worker; `submit` may be called from any thread.

    Args:
        model: Used by the worker alone from now on, and closed by `stop`.
        max_queue: Requests that may wait beside those that run.
        kv_budget_bytes: As for `Engine`.
        prefix: As for `Engine`; closed by `stop`.
        speculation: As for `Engine`.
        draft_max: As for `Engine`.
    """

    def __init__(
        self,
        model: TextModel,
        *,
        max_queue: int = 16,
        kv_budget_bytes: int | None = None,
        prefix: PrefixCache | None = None,
        speculation: bool = True,
        draft_max: int = MOST,
    ) -> None:
        self._model = model
        self._prefix = prefix
        self._engine = Engine(
            model, kv_budget_bytes=kv_budget_bytes, prefix=prefix, speculation=speculation, draft_max=draft_max
        )
        # As many run as there are slots; so many more may wait.
        self._most = max_queue + model.runner.limits.sequence_slots
        self._changed = threading.Condition()
        self._arrived: deque[Ticket] = deque()
        self._open = 0
        self._closing = False
        self._aborting = False
        self._failed = False
        # Since a request was last answered.
        self._faults = 0
        self._heartbeat = time.monotonic()
        # How long a request keeps its place, smoothed: from it callers learn when to ask again.
        self._usual_s = 1.0
        self._worker = threading.Thread(target=self._work, name="generation", daemon=True)
        self._worker.start()

    @property
    def info(self) -> ModelInfo:
        """The model's name and limits."""
        return self._model.info

    @property
    def most_tokens(self) -> int:
        """Tokens of KV cache that there is memory for."""
        return self._engine.most_tokens

    @property
    def accepting(self) -> bool:
        """Whether requests are taken: it has not failed, and `stop` has not been called."""
        return not (self._closing or self._failed)

    @property
    def failed(self) -> bool:
        """Whether the engine was given up after a fault; only a new process answers again."""
        return self._failed

    def submit(self, request: ChatRequest, on_event: OnEvent) -> Ticket:
        """Queue a request.

        The prompt is tokenized, and a grammar compiled, here, on the caller's thread.

        Raises:
            RequestError: `overloaded` (queue full, with `retry_after_s`), `shutting_down`, `context_length_exceeded`,
                `unsupported_schema`, or the chat template refuses the messages.
            RunnerError: `generation_failed`: see `failed`.
            BundleError: The chat template failed.
        """
        submitted = time.monotonic()
        with self._changed:
            self._refuse_if_full()
        ticket = self._model.ticket(request, self._watched(on_event, submitted), submitted=submitted, wake=self._wake)
        with self._changed:
            self._refuse_if_full()
            self._open += 1
            self._arrived.append(ticket)
            self._changed.notify_all()
        return ticket

    def seconds_since_heartbeat(self) -> float:
        """Seconds since the worker last completed a step or looked at the queue."""
        return time.monotonic() - self._heartbeat

    def queue_length(self) -> int:
        """Requests accepted and not yet over, the running ones included."""
        return self._open

    def stats(self) -> EngineStats:
        """What the engine is doing."""
        return self._engine.stats

    def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give running ones `drain_s` to end, fail the rest, join the worker, close the model.

        What does not end in time gets a `Failure` with code `shutting_down`. Calling it again does nothing.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._open == 0, timeout=drain_s)
            self._aborting = True
            self._changed.notify_all()
        self._worker.join(_JOIN_S)
        if self._worker.is_alive():
            logger.error("the model has not finished its step for %g s; it is left behind", _JOIN_S)
            return
        if self._prefix is not None:
            self._prefix.close()
        self._model.close()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _watched(self, on_event: OnEvent, submitted: float) -> OnEvent:
        def watched(event: Event) -> None:
            if isinstance(event, Finish | Failure):
                with self._changed:
                    self._open -= 1
                    if isinstance(event, Finish) and event.reason != "cancelled":
                        self._faults = 0
                        took = time.monotonic() - submitted - event.timings.queue_s
                        self._usual_s += 0.3 * (took - self._usual_s)
                    self._changed.notify_all()
            on_event(event)

        return watched

    def _refuse_if_full(self) -> None:
        if self._closing:
            raise _shutting_down()
        if self._failed:
            raise _given_up()
        if self._open >= self._most:
            # A place is free as soon as one of those that run ends.
            running = max(1, self._engine.running)
            wait_s = min(max(1.0, round(self._usual_s / running, 1)), 60.0)
            raise RequestError(
                f"{self._open} requests are already waiting or running",
                hint=f"ask again in about {wait_s:g} s",
                code="overloaded",
                retry_after_s=wait_s,
            )

    def _work(self) -> None:
        going = True
        while going:
            self._heartbeat = time.monotonic()
            try:
                going = self._turn()
            except BaseException as error:
                # Panics of libraries written in Rust are no `Exception`. Nobody else would hear of it.
                logger.critical("generation failed, and all open requests with it", exc_info=error)
                going = self._recover(error)

    def _turn(self) -> bool:
        """Take in what has arrived, and let the engine take a step; returns whether there will be another."""
        engine = self._engine
        with self._changed:
            if not self._arrived and engine.idle:
                if self._closing:
                    return False
                self._changed.wait(_IDLE_S)
            coming = len(self._arrived)
        for _ in range(coming):
            # One by one: a fault loses none.
            engine.add(self._arrived.popleft())
        if self._aborting:
            engine.sweep(abort=_shutting_down())
        engine.step()
        if engine.lost:
            # A request that no runner could compute fails alone; a runner that computes nothing is a fault.
            engine.probe()
        return True

    def _recover(self, error: BaseException) -> bool:
        """Fail what is open and start over; returns whether the worker goes on."""
        clean = False
        while not clean and self._faults < _MOST_FAULTS:
            self._faults += 1
            try:
                clean = self._engine.reset(internal_error(error))
            except BaseException as again:
                logger.critical("the engine cannot be reset", exc_info=again)
        if clean and self._faults < _MOST_FAULTS:
            return True
        with self._changed:
            self._failed = True
            lost = list(self._arrived)
            self._arrived.clear()
        logger.critical("generation is given up after %d faults in a row; the daemon must be restarted", self._faults)
        for ticket in lost:
            ticket.fail(_given_up())
        return False


def _given_up() -> EdgekitError:
    return RunnerError(
        "generation has failed and does not recover",
        hint="restart the daemon; its log says what happened",
        code="generation_failed",
    )


def _shutting_down() -> RequestError:
    return RequestError(
        "the daemon is shutting down", hint="ask again in a moment", code="shutting_down", retry_after_s=5.0
    )
