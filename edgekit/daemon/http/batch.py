"""Submits several requests as one: their choices are numbered through; they end, fail and are cancelled together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from edgekit.errors import RequestError, UnavailableError
from edgekit.generation.types import ChatRequest, ChoiceFinished, Delta, Event, Failure, Finished, ToolCallDelta
from edgekit.generation.usage import Timings, Usage

__all__ = ["Batch", "Cancellable"]

OnEvent = Callable[[Event], None]


class Cancellable(Protocol):
    """The part of `RequestState` that is needed here."""

    def cancel(self) -> None:
        """Cancel the request; harmless when it has ended."""


class Batch:
    """One stream of events of several requests.

    Choice `c` of request `r` is choice `r * n + c` of the batch. A failure of one request is that of the batch. Each
    request takes a place in the queue and counts for its client's share, as if it had been sent alone.

    Args:
        requests: At least one, all with the same `n`.
        on_event: Receives the events; it is called by one thread at a time.
    """

    def __init__(self, requests: Sequence[ChatRequest], on_event: OnEvent) -> None:
        self._requests = requests
        self._on_event = on_event
        self._n = requests[0].n
        self._lock = threading.Lock()
        self._states: list[Cancellable] = []
        self._finished: dict[int, Finished] = {}
        self._told: set[int] = set()
        self._deltas = 0
        self._over = False
        self._cancelled = False

    def submit(self, submit: Callable[[ChatRequest, OnEvent], Cancellable], places: int) -> None:
        """Submit all requests.

        Args:
            submit: Submits one.
            places: How many requests the queue takes at most.

        Raises:
            EdgekitError: One was rejected; those before it are cancelled, and no event is delivered.
        """
        try:
            for number, request in enumerate(self._requests):
                state = submit(request, self._receiver(number))
                with self._lock:
                    self._states.append(state)
                    cancelled = self._cancelled
                if cancelled:
                    state.cancel()
        except Exception as error:
            with self._lock:
                self._over = True
            self.cancel()
            if not (isinstance(error, UnavailableError) and error.code == "overloaded"):
                raise
            if len(self._requests) > places:
                # An empty queue would refuse them, too.
                raise RequestError(
                    f"{len(self._requests)} prompts are more than there are places in the queue",
                    hint=f"send at most {places} prompts at a time",
                    code="too_many_prompts",
                    param="prompt",
                ) from error
            if len(self._requests) > 1:
                raise UnavailableError(
                    f"there is no place for {len(self._requests)} prompts: {error.message}",
                    hint=f"send fewer prompts at a time, or {error.hint}",
                    code=error.code,
                    retry_after_s=error.retry_after_s,
                ) from error
            raise

    def cancel(self) -> None:
        """Cancel all requests."""
        with self._lock:
            self._cancelled = True
            states = [*self._states]
        for state in states:
            state.cancel()

    def _receiver(self, number: int) -> OnEvent:
        def receive(event: Event) -> None:
            failed = isinstance(event, Failure)
            with self._lock:
                if self._over:
                    return
                self._over = failed
                for one in [event] if failed else self._merged(number, event):
                    self._over = self._over or isinstance(one, Finished)
                    self._on_event(one)
            if failed:
                self.cancel()

        return receive

    def _merged(self, number: int, event: Event) -> list[Event]:
        first = number * self._n
        if isinstance(event, Delta | ToolCallDelta):
            self._deltas += 1
            return [replace(event, seq=self._deltas - 1, index=first + event.index)]
        if isinstance(event, ChoiceFinished):
            self._told.add(first + event.index)
            return [replace(event, index=first + event.index)]
        if not isinstance(event, Finished):
            return [event]
        self._finished[number] = event
        if len(self._finished) == len(self._requests):
            return [self._finish()]
        ends = (
            (first + index, reason) for index, reason in enumerate(event.reasons) if first + index not in self._told
        )
        return [ChoiceFinished(index, reason) for index, reason in ends]

    def _finish(self) -> Finished:
        parts = [self._finished[number] for number in range(len(self._requests))]
        return Finished(
            parts[0].reason,
            _total([part.usage for part in parts]),
            _together([part.timings for part in parts]),
            reasons=tuple(reason for part in parts for reason in part.reasons),
            stops=tuple(stop for part in parts for stop in part.stops or (None,) * self._n),
        )


def _total(usages: Sequence[Usage]) -> Usage:
    names = ("prompt", "completion", "cached", "accepted", "rejected", "reasoning")
    return Usage(
        **{f"{name}_tokens": sum(getattr(usage, f"{name}_tokens") for usage in usages) for name in names},
        left_out_messages=sum(usage.left_out_messages for usage in usages),
    )


def _together(timings: Sequence[Timings]) -> Timings:
    """Return the timings of requests that were submitted together: from the first's start to the last's end."""
    queue_s = min(one.queue_s for one in timings)
    first_s = min(one.first_token_s for one in timings)
    end_s = max(one.first_token_s + one.decode_s for one in timings)
    measured = all(one.prefill_j is not None and one.decode_j is not None for one in timings)
    return Timings(
        queue_s=queue_s,
        prefill_s=first_s - queue_s,
        decode_s=end_s - first_s,
        slowest_token_s=max(one.slowest_token_s for one in timings),
        steps=sum(one.steps for one in timings),
        kv_bytes=max(one.kv_bytes for one in timings),
        prefill_j=sum(one.prefill_j or 0.0 for one in timings) if measured else None,
        decode_j=sum(one.decode_j or 0.0 for one in timings) if measured else None,
    )
