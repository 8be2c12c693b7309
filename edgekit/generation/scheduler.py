"""One queue of requests in front of one model; both doors submit here.

A worker thread takes requests in order and runs each to its end. It beats a heart once per decode step (and
while idle), from which the service's watchdog is fed: a worker that hangs stops beating.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.decode import Cancelled, check_deadline, generate
from edgekit.generation.model import ModelInfo, TextModel
from edgekit.generation.request import ChatRequest, Delta, Event, Failure, Finish, Timings, Usage

__all__ = ["OnEvent", "Scheduler", "Ticket"]

logger = logging.getLogger(__name__)

OnEvent = Callable[[Event], None]
"""Receives every event of one request, in order, on the worker's thread; the last is a Finish or a Failure.

It must return at once (hand the event to a queue or an event loop); what it raises is logged and cancels the request.
"""

_IDLE_S = 1.0
# A step that hangs longer than this at the very end is left behind with its thread.
_JOIN_S = 60.0


class Ticket:
    """A request that was accepted.

    Attributes:
        prompt: Its tokens.
        on_event: Who hears of it.
        submitted: When, by `time.monotonic()`.
        cancelled: Nobody wants the answer any more.
    """

    __slots__ = ("_wake", "cancelled", "on_event", "prompt", "request", "submitted")

    def __init__(
        self, request: ChatRequest, prompt: Sequence[int], on_event: OnEvent, submitted: float, wake: Callable[[], None]
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.on_event = on_event
        self.submitted = submitted
        self._wake = wake
        self.cancelled = False

    def cancel(self) -> None:
        """Stop within one step; the last event is then `Finish(reason="cancelled")`. Harmless when already over."""
        self.cancelled = True
        self._wake()


class Scheduler:
    """The queue and its worker; `submit` may be called from any thread.

    Args:
        model: Used by the worker alone from now on, and closed by `stop`.
        max_queue: Requests that may wait beside the one that runs.
    """

    def __init__(self, model: TextModel, *, max_queue: int = 16) -> None:
        self._model = model
        self._max_queue = max_queue
        self._changed = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._closing = False
        self._aborting = False
        self._heartbeat = time.monotonic()
        # How long a request takes, smoothed: what `overloaded` tells callers to wait.
        self._usual_s = 1.0
        self._worker = threading.Thread(target=self._work, name="generation", daemon=True)
        self._worker.start()

    @property
    def info(self) -> ModelInfo:
        """The model's name and limits."""
        return self._model.info

    @property
    def accepting(self) -> bool:
        """Whether `stop` has not been called."""
        return not self._closing

    def submit(self, request: ChatRequest, on_event: OnEvent) -> Ticket:
        """Queue a request.

        The prompt is tokenized here, on the caller's thread.

        Raises:
            RequestError: `overloaded` (queue full, with `retry_after_s`), `shutting_down`, `context_length_exceeded`,
                or the chat template refuses the messages.
            BundleError: The chat template failed.
        """
        submitted = time.monotonic()
        with self._changed:
            self._refuse_if_full()
        ticket = Ticket(request, self._model.prompt(request).tokens, on_event, submitted, self._wake)
        with self._changed:
            self._refuse_if_full()
            self._queue.append(ticket)
            self._changed.notify_all()
        return ticket

    def seconds_since_heartbeat(self) -> float:
        """Seconds since the worker last completed a step or looked at the queue."""
        return time.monotonic() - self._heartbeat

    def queue_length(self) -> int:
        """Requests accepted and not yet over, the running one included."""
        with self._changed:
            return len(self._queue) + (self._running is not None)

    def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give running ones `drain_s` to end, fail the rest, join the worker, close the model.

        What does not end in time gets a `Failure` with code `shutting_down`. Calling it again does nothing.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue and self._running is None, timeout=drain_s)
            self._aborting = True
            self._changed.notify_all()
        self._worker.join(_JOIN_S)
        if self._worker.is_alive():
            logger.error("the model has not finished its step for %g s; it is left behind", _JOIN_S)
            return
        self._model.close()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _refuse_if_full(self) -> None:
        if self._closing:
            raise _shutting_down()
        waiting = len(self._queue) + (self._running is not None)
        if waiting > self._max_queue:
            wait_s = min(max(1.0, round(self._usual_s, 1)), 60.0)
            raise RequestError(
                f"{waiting} requests are already waiting or running",
                hint=f"ask again in about {wait_s:g} s",
                code="overloaded",
                retry_after_s=wait_s,
            )

    def _work(self) -> None:
        while (ticket := self._next()) is not None:
            self._serve(ticket)

    def _next(self) -> Ticket | None:
        """Wait for the next request to run; None once stopped and empty."""
        while True:
            self._sweep()
            with self._changed:
                if self._queue:
                    self._running = self._queue.popleft()
                    return self._running
                if self._closing:
                    return None
                self._changed.wait(_IDLE_S)

    def _sweep(self) -> None:
        """Beat, and end waiting requests that will not run: cancelled, expired, or shut down on."""
        self._heartbeat = time.monotonic()
        over: list[tuple[Ticket, Event]] = []
        with self._changed:
            for ticket in list(self._queue):
                event = self._last_event(ticket)
                if event:
                    self._queue.remove(ticket)
                    over.append((ticket, event))
            if over:
                self._changed.notify_all()
        for ticket, event in over:
            _deliver(ticket, event)

    def _last_event(self, ticket: Ticket) -> Event | None:
        if ticket.cancelled:
            waited = time.monotonic() - ticket.submitted
            usage = Usage(len(ticket.prompt), 0)
            return Finish("cancelled", usage, Timings(queue_s=waited, prefill_s=0.0, decode_s=0.0))
        try:
            self._raise_if_over(ticket)
        except EdgekitError as error:
            return Failure(error)
        return None

    def _raise_if_over(self, ticket: Ticket) -> None:
        check_deadline(ticket.request, ticket.submitted)
        if self._aborting:
            raise _shutting_down()

    def _serve(self, ticket: Ticket) -> None:
        def checkpoint() -> None:
            self._sweep()
            if ticket.cancelled:
                raise Cancelled
            self._raise_if_over(ticket)

        started = time.monotonic()
        last: Event = Failure(EdgekitError("the answer ended without an end"))
        events = generate(
            self._model,
            ticket.request,
            prompt=ticket.prompt,
            submitted=ticket.submitted,
            checkpoint=checkpoint,
        )
        for event in events:
            if isinstance(event, Delta):
                _deliver(ticket, event)
            else:
                last = event
        with self._changed:
            # Over before anybody hears of it: who asks again at the last event finds the place free.
            self._running = None
            if isinstance(last, Finish) and last.reason != "cancelled":
                self._usual_s += 0.3 * (time.monotonic() - started - self._usual_s)
            self._changed.notify_all()
        _log(ticket.request, last)
        _deliver(ticket, last)


def _log(request: ChatRequest, last: Event) -> None:
    # Never what was asked or answered: logs travel further than answers.
    if isinstance(last, Failure):
        logger.warning("request %s: %s: %s", request.id, last.error.code, last.error.message)
    elif isinstance(last, Finish):
        logger.info(
            "request %s: %s after %d + %d tokens, %.2f s waiting, %.2f s prefill, %.2f s decode",
            request.id,
            last.reason,
            last.usage.prompt_tokens,
            last.usage.completion_tokens,
            last.timings.queue_s,
            last.timings.prefill_s,
            last.timings.decode_s,
        )


def _deliver(ticket: Ticket, event: Event) -> None:
    try:
        ticket.on_event(event)
    except Exception:
        logger.exception("the receiver of request %s failed; the request is cancelled", ticket.request.id)
        ticket.cancel()


def _shutting_down() -> RequestError:
    return RequestError(
        "the daemon is shutting down", hint="ask again in a moment", code="shutting_down", retry_after_s=5.0
    )
