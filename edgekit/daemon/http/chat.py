"""`POST /v1/chat/completions`: replies in OpenAI's chat format."""

from __future__ import annotations

from typing import Any

from edgekit.daemon.api import CollectedReply, call_delta_body, logprobs_body, message_body, parse_chat, reasons
from edgekit.daemon.http.endpoint import RequestContext
from edgekit.daemon.http.openai import OpenAIReply, event
from edgekit.generation.types import Delta, Finished, FinishReason, ToolCallDelta

__all__ = ["ChatReply"]


class ChatReply(OpenAIReply):
    """The reply to a chat completion request; the constructor parses the body."""

    def __init__(self, body: bytes, context: RequestContext) -> None:
        request, options = parse_chat(body, request_id=context.id, client=context.client)
        super().__init__(
            context, (request,), options, prefix="chatcmpl", kind="chat.completion", chunk_kind="chat.completion.chunk"
        )

    def full(self, reply: CollectedReply, finished: Finished) -> dict[str, Any]:
        """Return a chat completion."""
        choices = [
            {
                "index": index,
                "message": {**message_body(choice), "refusal": None},
                "logprobs": None if self.request.logprobs is None else logprobs_body(choice.logprobs),
                "finish_reason": reason,
            }
            for index, (choice, reason) in enumerate(zip(reply.answers, reasons(finished, self.request.n), strict=True))
        ]
        return self.body(choices, finished)

    def start(self) -> bytes:
        """Return the role of each choice; with tools the content may stay null."""
        delta = {"role": "assistant", "content": None if self.request.tools else ""}
        return b"".join(event(self.chunk(self._choice(index, delta))) for index in range(self.request.n))

    def delta(self, delta: Delta | ToolCallDelta) -> bytes:
        """Return a chunk of text, reasoning or a tool call."""
        if isinstance(delta, ToolCallDelta):
            return event(self.chunk(self._choice(delta.index, {"tool_calls": [call_delta_body(delta)]})))
        choice = self._choice(delta.index, {"reasoning_content" if delta.reasoning else "content": delta.text})
        if self.request.logprobs is not None:
            choice["logprobs"] = logprobs_body(delta.logprobs)
        return event(self.chunk(choice))

    def last_choice(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """Return an empty delta with the finish reason."""
        return self._choice(index, {}, reason)

    def _choice(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
