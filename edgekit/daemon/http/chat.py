"""`POST /v1/chat/completions`: the OpenAI dialect of a chat."""

from __future__ import annotations

from typing import Any

from edgekit.daemon.http.endpoint import Asked
from edgekit.daemon.http.openai import OpenAIReply, event
from edgekit.daemon.wire import Gathered, call_delta_body, logprobs_body, message_body, parse_chat, reasons
from edgekit.generation.request import Delta, Finish, FinishReason, ToolCallDelta

__all__ = ["ChatReply"]


class ChatReply(OpenAIReply):
    """A chat's reply; making one reads the body."""

    def __init__(self, body: bytes, asked: Asked) -> None:
        request, options = parse_chat(body, request_id=asked.id, client=asked.client)
        super().__init__(
            asked, request, options, prefix="chatcmpl", kind="chat.completion", chunk_kind="chat.completion.chunk"
        )

    def whole(self, answers: Gathered, finish: Finish) -> dict[str, Any]:
        """A chat completion."""
        choices = [
            {
                "index": index,
                "message": {**message_body(answer), "refusal": None},
                "logprobs": None if self.request.logprobs is None else logprobs_body(answer.logprobs),
                "finish_reason": reason,
            }
            for index, (answer, reason) in enumerate(zip(answers.answers, reasons(finish, self.request.n), strict=True))
        ]
        return self.reply(choices, finish)

    def opening(self) -> bytes:
        """The role, for each answer. Where calls may come the content may stay null."""
        delta = {"role": "assistant", "content": None if self.request.tools else ""}
        return b"".join(event(self.chunk(self._choice(index, delta))) for index in range(self.request.n))

    def piece(self, piece: Delta | ToolCallDelta) -> bytes:
        """A piece of the text, or of a call."""
        if isinstance(piece, ToolCallDelta):
            return event(self.chunk(self._choice(piece.index, {"tool_calls": [call_delta_body(piece)]})))
        choice = self._choice(piece.index, {"reasoning_content" if piece.reasoning else "content": piece.text})
        if self.request.logprobs is not None:
            choice["logprobs"] = logprobs_body(piece.logprobs)
        return event(self.chunk(choice))

    def closing(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """Why an answer ended."""
        return self._choice(index, {}, reason)

    def _choice(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
