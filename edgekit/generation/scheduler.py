"""One queue of requests in front of one model; both doors submit here.

A worker thread takes requests in order and runs each to its end. It beats a heart once per decode step (and
while idle), from which the service's watchdog is fed: a worker that hangs stops beating.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edgekit.generation.request import ChatRequest, Event

__all__ = ["Scheduler", "Ticket"]

OnEvent = Callable[[Event], None]
"""Receives every event of one request, in order, on the worker's thread; the last is a Finish or a Failure.

It must return at once (hand the event to a queue or an event loop); what it raises is logged and cancels the request.
"""


class Ticket(Protocol):
    """A request that was accepted."""

    def cancel(self) -> None:
        """Stop within one step; the last event is then `Finish(reason="cancelled")`. Harmless when already over."""


class Scheduler(Protocol):
    """SEAM ONLY, to be replaced by the implementation of the same public surface."""

    def submit(self, request: ChatRequest, on_event: OnEvent) -> Ticket:
        """Queue a request.

        Raises:
            RequestError: `overloaded` (queue full, with `retry_after_s`), `shutting_down`, `context_length_exceeded`.
        """

    def seconds_since_heartbeat(self) -> float:
        """Seconds since the worker last completed a step or looked at the queue."""

    def queue_length(self) -> int:
        """Requests accepted and not yet over, the running one included."""

    def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give running ones `drain_s` to end, cancel the rest, join the worker, close the model."""
