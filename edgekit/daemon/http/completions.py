"""`POST /v1/completions`: replies in OpenAI's legacy completions format, of one prompt or several."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from edgekit.daemon.api import CollectedChoice, CollectedReply, parse_completions, reasons
from edgekit.daemon.api.responses import clamped, token_text
from edgekit.daemon.http.endpoint import RequestContext
from edgekit.daemon.http.openai import OpenAIReply, event
from edgekit.generation.types import Delta, Finished, FinishReason, TokenLogprob, ToolCallDelta

__all__ = ["CompletionReply"]


class CompletionReply(OpenAIReply):
    """The reply to a completion request; the constructor parses the body."""

    def __init__(self, body: bytes, context: RequestContext) -> None:
        found = parse_completions(body, request_id=context.id, client=context.client)
        super().__init__(
            context, found.requests, found.options, prefix="cmpl", kind="text_completion", chunk_kind="text_completion"
        )
        self._n = found.n
        self._wanted = found.logprobs
        self._logprobs = [_LogprobsTable(found.logprobs or 0) for _ in range(self.choices)]

    def full(self, reply: CollectedReply, finished: Finished) -> dict[str, Any]:
        """Return a completion: the best choices of each prompt, if more were generated."""
        ends = reasons(finished, self.choices)
        generated = self.request.n
        choices: list[dict[str, Any]] = []
        for first in range(0, self.choices, generated):
            indices = range(first, first + generated)
            best = sorted(indices, key=lambda index: _mean_logprob(reply.answers[index]), reverse=True)
            for index in indices if generated == self._n else best[: self._n]:
                choice = self._choice(index, reply.answers[index].text, reply.answers[index].logprobs, ends[index])
                choices.append({**choice, "index": len(choices)})
        return self.body(choices, finished)

    def start(self) -> bytes:
        """Return nothing: the format has no first chunk of its own."""
        return b""

    def delta(self, delta: Delta | ToolCallDelta) -> bytes:
        """Return a chunk of text."""
        if isinstance(delta, ToolCallDelta):
            return b""  # impossible: a completion has no tools
        return event(self.chunk(self._choice(delta.index, delta.text, delta.logprobs)))

    def last_choice(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """Return an empty text with the finish reason."""
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], reason: str | None = None
    ) -> dict[str, Any]:
        table = None if self._wanted is None else self._logprobs[index].rows(logprobs)
        return {"index": index, "text": text, "logprobs": table, "finish_reason": reason}


def _mean_logprob(choice: CollectedChoice) -> float:
    """Return the log probability per token, by which OpenAI's `best_of` ranks choices."""
    values = [item.logprob for item in choice.logprobs if item.logprob is not None]
    return sum(values) / len(values) if values else 0.0


class _LogprobsTable:
    """Builds the `logprobs` object of one choice incrementally: four columns, one row per token.

    Args:
        top_logprobs: Number of top tokens requested; 0 leaves out their column.
    """

    def __init__(self, top_logprobs: int) -> None:
        self._top_logprobs = top_logprobs
        self._offset = 0
        # A token may begin or end within a character; its offset is that of the character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def rows(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return the rows of the next tokens."""
        offsets = []
        for item in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(item.data))
        return {
            "text_offset": offsets,
            "tokens": [token_text(item.data) for item in tokens],
            "token_logprobs": [clamped(item.logprob) for item in tokens],
            "top_logprobs": [_top_logprobs(item) for item in tokens] if self._top_logprobs else None,
        }


def _top_logprobs(item: TokenLogprob) -> dict[str, float | None] | None:
    """Return the top tokens and the chosen one; None for the first token of a prompt, which has no probability.

    Of tokens with the same text the most likely one is shown, so that the largest value is that of the best token.
    """
    if item.logprob is None:
        return None
    tokens = sorted((*item.top, (item.token, item.data, item.logprob)), key=lambda one: -one[2])
    found: dict[str, float | None] = {}
    for _, data, value in tokens:
        found.setdefault(token_text(data), clamped(value))
    return found
