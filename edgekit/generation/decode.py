"""One answer from one model: prefill, then token by token until something ends it.

It uses sequence slot 0 and leaves it empty. It knows no queue and no thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.detokenizer import Detokenizer
from edgekit.generation.graphemes import Clusters
from edgekit.generation.model import TextModel
from edgekit.generation.request import ChatRequest, Delta, Event, Failure, Finish, FinishReason, Timings, Usage
from edgekit.generation.sampling import Sampler
from edgekit.generation.stops import StopFilter
from edgekit.runners.base import Chunk, Runner

__all__ = ["Cancelled", "generate"]

logger = logging.getLogger(__name__)

_SLOT = 0


class Cancelled(Exception):  # noqa: N818  it reports a wish, not an error
    """Raised by a `checkpoint` to end an answer as cancelled."""


def generate(
    model: TextModel,
    request: ChatRequest,
    *,
    prompt: Sequence[int] | None = None,
    submitted: float | None = None,
    checkpoint: Callable[[], None] | None = None,
) -> Iterator[Event]:
    """Answer a request; the stream ends with exactly one `Finish` or `Failure`.

    Closing the iterator early, or Ctrl-C in it, leaves the model ready for the next request.

    Args:
        model: Not used by anybody else meanwhile.
        request: What to answer.
        prompt: The request's prompt tokens, if they are already known.
        submitted: `time.monotonic()` at which the request was submitted; now, unless given.
        checkpoint: Called before each step of the runner. It may raise `Cancelled`, or an `EdgekitError` that
            becomes the `Failure`.
    """
    started = time.monotonic()
    answer = _Answer(model, request, started=started, submitted=started if submitted is None else submitted)
    try:
        yield from answer.run(prompt, checkpoint)
    except Cancelled:
        yield answer.finish("cancelled")
    except EdgekitError as error:
        yield Failure(error)
    except Exception as error:
        logger.exception("request %s failed", request.id)
        yield Failure(_internal(error))


def check_deadline(request: ChatRequest, submitted: float) -> None:
    """Raise `deadline_exceeded` if nobody wants the answer any more."""
    if request.deadline_s is not None and time.monotonic() - submitted > request.deadline_s:
        raise RequestError(
            f"the answer was not complete within {request.deadline_s:g} s",
            hint="give it more time, or ask for fewer tokens",
            code="deadline_exceeded",
            param="deadline_s",
        )


@dataclass(slots=True)
class _Answer:
    """The state of one answer."""

    model: TextModel
    request: ChatRequest
    started: float
    submitted: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    deltas: int = 0
    first: float | None = None
    """When the first token was there."""

    def run(self, prompt: Sequence[int] | None, checkpoint: Callable[[], None] | None) -> Iterator[Event]:
        """Yield the events; any error leaves as an exception."""
        model, request, runner = self.model, self.request, self.model.runner
        tokens = model.prompt(request).tokens if prompt is None else prompt
        self.prompt_tokens = len(tokens)
        room = model.info.context_length - len(tokens)
        most = room if request.max_tokens is None else min(room, request.max_tokens)
        sampler = Sampler(request.sampling, vocab_size=runner.limits.vocab_size, prompt=tokens)
        text = _Text(model, request)

        def step(chunk: Chunk) -> npt.NDArray[np.float32]:
            if checkpoint:
                checkpoint()
            check_deadline(request, self.submitted)
            return runner.run([chunk])[0]

        try:
            # Whatever an earlier failure left behind.
            runner.truncate(_SLOT, 0)
            logits = _prefill(runner, tokens, step)
            while True:
                token = sampler.choose(logits[-1]).token
                self.completion_tokens += 1
                if self.first is None:
                    self.first = time.monotonic()
                reason: FinishReason | None = None
                if token in model.eos_token_ids:
                    reason = "stop"
                else:
                    yield from self._delta(text.push(token))
                    if text.stopped:
                        reason = "stop"
                    elif self.completion_tokens >= most:
                        reason = "length"
                if reason:
                    break
                logits = step(Chunk(_SLOT, (token,)))
            yield from self._delta(text.finish())
            if text.stopped:
                reason = "stop"
        finally:
            _release(runner)
        yield self.finish(reason)

    def finish(self, reason: FinishReason) -> Finish:
        """Return the last event."""
        now = time.monotonic()
        first = now if self.first is None else self.first
        return Finish(
            reason=reason,
            usage=Usage(self.prompt_tokens, self.completion_tokens),
            timings=Timings(
                queue_s=self.started - self.submitted, prefill_s=first - self.started, decode_s=now - first
            ),
        )

    def _delta(self, text: str) -> Iterator[Event]:
        if text:
            yield Delta(self.deltas, text)
            self.deltas += 1


class _Text:
    """Tokens to the text that may be shown: whole characters, without stop texts."""

    def __init__(self, model: TextModel, request: ChatRequest) -> None:
        self._detokenizer = Detokenizer(model.tokenizer)
        self._stops = StopFilter(request.stop)
        self._clusters = Clusters()

    @property
    def stopped(self) -> bool:
        return self._stops.hit

    def push(self, token: int) -> str:
        return self._clusters.push(self._stops.push(self._detokenizer.push(token)))

    def finish(self) -> str:
        rest = self._stops.push(self._detokenizer.finish()) + self._stops.finish()
        return self._clusters.push(rest) + self._clusters.finish()


def _prefill(
    runner: Runner, tokens: Sequence[int], step: Callable[[Chunk], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """Run the prompt in chunks and return the logits `[1, vocab]` after its last token."""
    size = runner.limits.max_chunk
    last = (len(tokens) - 1) // size * size
    for start in range(0, last, size):
        step(Chunk(_SLOT, tokens[start : start + size], logits="none"))
    return step(Chunk(_SLOT, tokens[last:]))


def _release(runner: Runner) -> None:
    try:
        runner.truncate(_SLOT, 0)
    except EdgekitError:
        # The answer's own outcome matters more; the next request truncates again and reports it.
        logger.exception("sequence slot %d could not be freed", _SLOT)


def _internal(error: Exception) -> EdgekitError:
    detail = " ".join(str(error).split())[:200]
    return EdgekitError(
        f"internal error: {type(error).__name__}{': ' if detail else ''}{detail}",
        hint="this is a fault in edgekit; its log has the details",
    )
