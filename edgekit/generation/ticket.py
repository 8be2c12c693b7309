"""One accepted request: who hears of it, what it has cost so far, and how it ended.

Its events go out in order and end with exactly one `Finish` or `Failure`; nothing follows it. It knows no runner.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.grammar import Grammar
from edgekit.generation.request import (
    ChatRequest,
    Delta,
    Ended,
    Event,
    Failure,
    Finish,
    FinishReason,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from edgekit.generation.tools import CallArguments, CallStart, Piece, TextPiece, ToolFormat, ToolParser

__all__ = ["OnEvent", "Ticket"]

logger = logging.getLogger(__name__)

OnEvent = Callable[[Event], None]
"""Receives every event of one request, in order, on the worker's thread; the last is a Finish or a Failure.

It must return at once (hand the event to a queue or an event loop); what it raises is logged and cancels the request.
"""


class Ticket:
    """A request that was accepted.

    Args:
        request: What was asked.
        prompt: Its tokens.
        on_event: Who hears of it.
        submitted: When, by `time.monotonic()`.
        wake: Called when it is cancelled.
        grammar: What holds its answers; None leaves them free.
        tools: How calls and reasoning look in its answers; None looks for none.
        left_out: Messages of the chat that the prompt does without.
        thinking: The prompt opens the model's reasoning, and its answers go on with it.

    Attributes:
        cancelled: Nobody wants the answer any more.
        over: The last event is out.
        cached_tokens, accepted_tokens, rejected_tokens, completion_tokens, steps, kv_bytes: As in `Usage`, `Timings`.
    """

    def __init__(
        self,
        request: ChatRequest,
        prompt: Sequence[int],
        on_event: OnEvent,
        *,
        submitted: float,
        wake: Callable[[], None] = lambda: None,
        grammar: Grammar | None = None,
        tools: ToolFormat | None = None,
        left_out: int = 0,
        thinking: bool = False,
    ) -> None:
        self.request = request
        self.prompt = list(prompt)
        self.grammar = grammar
        self.tools = tools
        self.left_out = left_out
        self.thinking = thinking
        self.submitted = submitted
        self.cancelled = False
        self.over = False
        self.cached_tokens = self.accepted_tokens = self.rejected_tokens = self.completion_tokens = 0
        self.steps = self.kv_bytes = 0
        self._on_event = on_event
        self._wake = wake
        self._events = 0
        self._reasons: list[FinishReason | None] = [None] * request.n
        self._calls = [0] * request.n
        self._started: float | None = None
        self._first: float | None = None
        self._last = 0.0
        self._slowest_s = 0.0

    def parser(self) -> ToolParser | None:
        """Return what finds the calls in one of the answers."""
        if self.tools is None:
            return None
        request = self.request
        return self.tools.parser(
            self.tools.new_id,
            # What looks like a call where none is allowed is text.
            () if request.tool_choice.mode == "none" else request.tools,
            enforced=self.grammar is not None,
            thinking=self.thinking,
            parallel=request.parallel_tool_calls,
        )

    @property
    def id(self) -> str:
        """The request's name."""
        return self.request.id

    def cancel(self) -> None:
        """Stop within one step; the last event is then `Finish(reason="cancelled")`. Harmless when already over."""
        self.cancelled = True
        self._wake()

    def check(self, now: float) -> None:
        """Raise `deadline_exceeded` if nobody wants the answer any more.

        Args:
            now: `time.monotonic()`.
        """
        deadline_s = self.request.deadline_s
        if deadline_s is not None and now - self.submitted > deadline_s:
            raise RequestError(
                f"the answer was not complete within {deadline_s:g} s",
                hint="give it more time, or ask for fewer tokens",
                code="deadline_exceeded",
                param="deadline_s",
            )

    def start(self) -> None:
        """The first step is about to be taken."""
        if self._started is None:
            self._started = time.monotonic()

    def token(self, since: float) -> float:
        """A token is there; returns now.

        Args:
            since: When the same answer's token before it was there; 0 for the first.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = now
        if since:
            self._slowest_s = max(self._slowest_s, now - since)
        self._last = now
        return now

    def send(self, index: int, pieces: Sequence[Piece], logprobs: Sequence[TokenLogprob] = ()) -> None:
        """Pass on pieces of one answer; the log probabilities go with the first text."""
        for piece in pieces:
            if isinstance(piece, TextPiece):
                apart = self.request.reasoning == "apart"
                if piece.mark and apart:
                    continue
                self._emit(Delta(self._events, piece.text, index, tuple(logprobs), piece.thinking and apart))
                logprobs = ()
            elif isinstance(piece, CallStart):
                self._calls[index] += 1
                self._emit(ToolCallDelta(self._events, self._calls[index] - 1, "", piece.id, piece.name, index))
            elif isinstance(piece, CallArguments):
                self._emit(ToolCallDelta(self._events, self._calls[index] - 1, piece.text, index=index))
        if logprobs:
            self._emit(Delta(self._events, "", index, tuple(logprobs)))

    def answered(self, index: int, reason: FinishReason) -> bool:
        """One of the answers has ended; returns whether that was the last, which `finish` then tells."""
        self._reasons[index] = reason
        if all(self._reasons):
            return True
        if not self.over:
            self._deliver(Ended(index, reason))
        return False

    def finish(self, reason: FinishReason | None = None) -> None:
        """End well.

        Args:
            reason: Of the answers that have not ended; the others keep their own.
        """
        reasons: tuple[FinishReason, ...] = tuple(have or reason or "stop" for have in self._reasons)
        now = time.monotonic()
        started = now if self._started is None else self._started
        first = now if self._first is None else self._first
        self._end(
            Finish(
                reason=reasons[0],
                usage=Usage(
                    prompt_tokens=len(self.prompt),
                    completion_tokens=self.completion_tokens,
                    cached_tokens=self.cached_tokens,
                    accepted_tokens=self.accepted_tokens,
                    rejected_tokens=self.rejected_tokens,
                    left_out_messages=self.left_out,
                ),
                timings=Timings(
                    queue_s=started - self.submitted,
                    prefill_s=max(0.0, first - started),
                    decode_s=max(0.0, self._last - first) if self._last else 0.0,
                    slowest_token_s=self._slowest_s,
                    steps=self.steps,
                    kv_bytes=self.kv_bytes,
                ),
                reasons=reasons,
            )
        )

    def fail(self, error: EdgekitError) -> None:
        """End badly."""
        self._end(Failure(error))

    def _end(self, event: Finish | Failure) -> None:
        if self.over:
            return
        self.over = True
        _log(self.request, event)
        self._deliver(event)

    def _emit(self, event: Delta | ToolCallDelta) -> None:
        if not self.over:
            self._events += 1
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:
            logger.exception("the receiver of request %s failed; the request is cancelled", self.id)
            self.cancelled = True


def _log(request: ChatRequest, last: Finish | Failure) -> None:
    # Never what was asked or answered: logs travel further than answers.
    if isinstance(last, Failure):
        logger.warning("request %s: %s: %s", request.id, last.error.code, last.error.message)
        return
    logger.info(
        "request %s: %s after %d + %d tokens (%d cached), %.2f s waiting, %.2f s prefill, %.2f s decode",
        request.id,
        last.reason,
        last.usage.prompt_tokens,
        last.usage.completion_tokens,
        last.usage.cached_tokens,
        last.timings.queue_s,
        last.timings.prefill_s,
        last.timings.decode_s,
    )
