"""`POST /v1/completions`: the OpenAI dialect of a text to continue, from before there were chats."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from edgekit.daemon.http.endpoint import Asked
from edgekit.daemon.http.openai import OpenAIReply, event
from edgekit.daemon.wire import Gathered, parse_completion, reasons
from edgekit.daemon.wire.replies import clamped, token_text
from edgekit.generation.request import Delta, Finish, FinishReason, TokenLogprob, ToolCallDelta

__all__ = ["CompletionReply"]


class CompletionReply(OpenAIReply):
    """A completion's reply; making one reads the body."""

    def __init__(self, body: bytes, asked: Asked) -> None:
        request, options = parse_completion(body, request_id=asked.id, client=asked.client)
        super().__init__(asked, request, options, prefix="cmpl", kind="text_completion", chunk_kind="text_completion")
        self._tables = [_Table(request.logprobs or 0) for _ in range(request.n)]

    def whole(self, answers: Gathered, finish: Finish) -> dict[str, Any]:
        """A completion."""
        choices = [
            self._choice(index, answer.text, answer.logprobs, reason)
            for index, (answer, reason) in enumerate(zip(answers.answers, reasons(finish, self.request.n), strict=True))
        ]
        return self.reply(choices, finish)

    def opening(self) -> bytes:
        """Nothing."""
        return b""

    def piece(self, piece: Delta | ToolCallDelta) -> bytes:
        """A piece of the text."""
        if isinstance(piece, ToolCallDelta):
            return b""  # no tools, no calls
        return event(self.chunk(self._choice(piece.index, piece.text, piece.logprobs)))

    def closing(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """Why an answer ended."""
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], reason: str | None = None
    ) -> dict[str, Any]:
        table = None if self.request.logprobs is None else self._tables[index].rows(logprobs)
        return {"index": index, "text": text, "logprobs": table, "finish_reason": reason}


class _Table:
    """The `logprobs` object of one answer, piece by piece: four columns, one row per token.

    Args:
        most: How many of the likeliest tokens were asked for; 0 leaves out their column.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._offset = 0
        # A token may end within a character: its offset is that of the character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def rows(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return the rows of further tokens."""
        offsets = []
        for item in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(item.data))
        return {
            "text_offset": offsets,
            "tokens": [token_text(item.data) for item in tokens],
            "token_logprobs": [clamped(item.logprob) for item in tokens],
            "top_logprobs": [_likeliest(item) for item in tokens] if self._most else None,
        }


def _likeliest(item: TokenLogprob) -> dict[str, float | None] | None:
    """The likeliest tokens, and the one that came if it is none of them; nothing precedes a prompt's first."""
    if item.logprob is None:
        return None
    return {token_text(data): clamped(value) for _, data, value in (*item.top, (item.token, item.data, item.logprob))}
