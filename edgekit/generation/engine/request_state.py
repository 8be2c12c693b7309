"""State of one accepted request: delivers its events, counts its tokens, and records how it ended.

Events are delivered in order and end with exactly one `Finished` or `Failure`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from edgekit.errors import EdgekitError, RequestError, spelled
from edgekit.generation.prepared import PreparedRequest
from edgekit.generation.tools import ArgumentsDelta, CallStart, ParserEvent, TextDelta
from edgekit.generation.types import (
    ChatRequest,
    ChoiceFinished,
    Delta,
    Event,
    Failure,
    Finished,
    FinishReason,
    TokenLogprob,
    ToolCallDelta,
    UsedTokens,
)
from edgekit.generation.usage import Timings, Usage

__all__ = ["OnEvent", "RequestState"]

logger = logging.getLogger(__name__)

OnEvent = Callable[[Event], None]
"""Receives every event of one request, in order, on the worker's thread; the last is a `Finished` or a `Failure`.

It must return at once (hand the event to a queue or an event loop). An exception is logged and cancels the request.
"""


class RequestState:
    """An accepted request.

    Args:
        prepared: From `TextModel.prepare`.
        on_event: Receives its events.
        submitted: Time of submission, by `time.monotonic()`.
        wake: Called when it is cancelled.

    Attributes:
        cancelled: The request was cancelled; the engine ends it in its next step.
        done: The last event was delivered.
        cached_tokens, accepted_tokens, rejected_tokens, completion_tokens, reasoning_tokens, steps, kv_bytes: As in
            `Usage` and `Timings`.
    """

    def __init__(
        self,
        prepared: PreparedRequest,
        on_event: OnEvent,
        *,
        submitted: float,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.prepared = prepared
        self.request = request = prepared.request
        self.prompt = prepared.prompt
        self.submitted = submitted
        self.cancelled = False
        self.done = False
        self.cached_tokens = self.accepted_tokens = self.rejected_tokens = self.completion_tokens = 0
        self.steps = self.kv_bytes = self.reasoning_tokens = 0
        # Joules of prefill and of decoding; None if none was measured.
        self._energy: tuple[float, float] | None = None
        self._energy_unknown = False
        self._on_event = on_event
        self._wake = wake
        self._deltas = 0
        self._reasons: list[FinishReason | None] = [None] * request.n
        self._calls = [0] * request.n
        self._outputs: list[tuple[int, ...]] = [()] * request.n
        self._stops: list[str | None] = [None] * request.n
        self._started: float | None = None
        self._first_token: float | None = None
        self._last_token = 0.0
        self._slowest_s = 0.0

    @property
    def id(self) -> str:
        """The request id."""
        return self.request.id

    @property
    def started(self) -> float | None:
        """By `time.monotonic()`, when it got its first slot; None while it waits."""
        return self._started

    def cancel(self) -> None:
        """Stop within one step, with `Finished(reason="cancelled")` as the last event; no effect once done."""
        self.cancelled = True
        self._wake()

    def check_deadline(self, now: float) -> None:
        """Raise `deadline_exceeded` if the deadline has passed.

        Args:
            now: `time.monotonic()`.
        """
        deadline_s = self.request.deadline_s
        if deadline_s is not None and now - self.submitted > deadline_s:
            raise RequestError(
                f"the answer was not complete within {spelled(deadline_s)} s",
                hint="allow more time, or request fewer tokens",
                code="deadline_exceeded",
                param="deadline_s",
            )

    def start(self) -> None:
        """Record that the request has its first slot."""
        if self._started is None:
            self._started = time.monotonic()

    def count_token(self, previous: float) -> float:
        """Record the time of a generated token, and return it.

        Args:
            previous: The time of the same choice's previous token; 0 for the first.
        """
        now = time.monotonic()
        if self._first_token is None:
            self._first_token = now
        if previous:
            self._slowest_s = max(self._slowest_s, now - previous)
        self._last_token = now
        return now

    def add_energy(self, joules: float | None, *, decoding: bool) -> None:
        """Count the request's part of a step's energy.

        Args:
            joules: The energy; None if it was not measured, and then neither is that of the request.
            decoding: The step was after the first token.
        """
        if joules is None:
            self._energy_unknown = True
            return
        prefill, decode = self._energy or (0.0, 0.0)
        self._energy = (prefill, decode + joules) if decoding else (prefill + joules, decode)

    def send(self, index: int, pieces: Sequence[ParserEvent], logprobs: Sequence[TokenLogprob] = ()) -> None:
        """Send one choice's output as deltas; the logprobs go with the first text delta."""
        for piece in pieces:
            if isinstance(piece, TextDelta):
                apart = self.request.reasoning == "apart"
                if piece.delimiter and apart:
                    continue
                self._emit(Delta(self._deltas, piece.text, index, tuple(logprobs), piece.thinking and apart))
                logprobs = ()
            elif isinstance(piece, CallStart):
                self._calls[index] += 1
                self._emit(ToolCallDelta(self._deltas, self._calls[index] - 1, "", piece.id, piece.name, index))
            elif isinstance(piece, ArgumentsDelta):
                self._emit(ToolCallDelta(self._deltas, self._calls[index] - 1, piece.text, index=index))
        if logprobs:
            self._emit(Delta(self._deltas, "", index, tuple(logprobs)))

    def stopped(self, index: int, stop: str | None) -> None:
        """Record the stop string that ends a choice; call it before `finish_choice`."""
        self._stops[index] = stop

    def finish_choice(self, index: int, reason: FinishReason, tokens: Sequence[int] = ()) -> bool:
        """Record that a choice has ended; returns whether it was the last, which `finish` then reports.

        Args:
            index: Index of the choice.
            reason: Why it has ended.
            tokens: Its tokens, without the prompt's.
        """
        self._reasons[index] = reason
        if self.request.return_tokens:
            self._outputs[index] = tuple(tokens)
        if all(self._reasons):
            return True
        if not self.done:
            self._deliver(ChoiceFinished(index, reason))
        return False

    def finish(self, reason: FinishReason | None = None) -> None:
        """Deliver `Finished`.

        Args:
            reason: Finish reason of the choices that have not ended; the others keep theirs.
        """
        reasons: tuple[FinishReason, ...] = tuple(known or reason or "stop" for known in self._reasons)
        now = time.monotonic()
        started = now if self._started is None else self._started
        first = now if self._first_token is None else self._first_token
        prefill_j, decode_j = (None, None) if self._energy is None or self._energy_unknown else self._energy
        self._end(
            Finished(
                reason=reasons[0],
                usage=Usage(
                    prompt_tokens=len(self.prompt),
                    completion_tokens=self.completion_tokens,
                    cached_tokens=self.cached_tokens,
                    accepted_tokens=self.accepted_tokens,
                    rejected_tokens=self.rejected_tokens,
                    left_out_messages=self.prepared.left_out,
                    reasoning_tokens=self.reasoning_tokens,
                ),
                timings=Timings(
                    queue_s=started - self.submitted,
                    prefill_s=max(0.0, first - started),
                    decode_s=self._last_token - first if self._last_token else 0.0,
                    slowest_token_s=self._slowest_s,
                    steps=self.steps,
                    kv_bytes=self.kv_bytes,
                    prefill_j=prefill_j,
                    decode_j=decode_j,
                ),
                reasons=reasons,
                stops=tuple(self._stops),
                tokens=UsedTokens(tuple(self.prompt), tuple(self._outputs)) if self.request.return_tokens else None,
            )
        )

    def fail(self, error: EdgekitError) -> None:
        """Deliver `Failure`."""
        self._end(Failure(error))

    def _end(self, event: Finished | Failure) -> None:
        if self.done:
            return
        self.done = True
        _log(self.request, event)
        self._deliver(event)

    def _emit(self, event: Delta | ToolCallDelta) -> None:
        if not self.done:
            self._deltas += 1
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:
            logger.exception("the receiver of request %s failed; the request is cancelled", self.id)
            self.cancelled = True


def _log(request: ChatRequest, last: Finished | Failure) -> None:
    # Never the prompt or the output: logs travel further than answers.
    if isinstance(last, Failure):
        logger.warning("request %s: %s: %s", request.id, last.error.code, last.error.message)
        return
    logger.info(
        "request %s: %s after %d + %d tokens (%d cached), %.2f s queued, %.2f s prefill, %.2f s decode",
        request.id,
        last.reason,
        last.usage.prompt_tokens,
        last.usage.completion_tokens,
        last.usage.cached_tokens,
        last.timings.queue_s,
        last.timings.prefill_s,
        last.timings.decode_s,
    )
