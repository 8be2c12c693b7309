"""`POST /v1/chat/completions`: replies in OpenAI's chat format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.daemon.api import CollectedReply, call_delta_body, logprobs_body, message_body, parse_chat, reasons
from edgekit.daemon.http.endpoint import RequestContext
from edgekit.daemon.http.openai import OpenAIReply
from edgekit.generation.types import Delta, Finished, FinishReason, ToolCallDelta

if TYPE_CHECKING:
    from edgekit.daemon.api.openai_types import ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta

__all__ = ["ChatReply"]


class ChatReply(OpenAIReply["ChatChunkChoice"]):
    """The reply to a chat completion request; the constructor parses the body."""

    def __init__(self, body: bytes, context: RequestContext) -> None:
        request, options = parse_chat(body, request_id=context.id, client=context.client)
        super().__init__(context, (request,), options, prefix="chatcmpl")

    def full(self, reply: CollectedReply, finished: Finished) -> ChatCompletion:
        """Return a chat completion."""
        choices: list[ChatChoice] = [
            {
                "index": index,
                "message": {**message_body(choice), "refusal": None},
                "logprobs": None if self.request.logprobs is None else logprobs_body(choice.logprobs),
                "finish_reason": reason,
            }
            for index, (choice, reason) in enumerate(zip(reply.answers, reasons(finished, self.request.n), strict=True))
        ]
        return {**self.head, "object": "chat.completion", "choices": choices, **self.costs(finished)}

    def start(self) -> bytes:
        """Return the role of each choice; with tools the content may stay null."""
        delta: ChatDelta = {"role": "assistant", "content": None if self.request.tools else ""}
        return b"".join(self.choice_event(self._choice(index, delta)) for index in range(self.request.n))

    def delta(self, delta: Delta | ToolCallDelta) -> bytes:
        """Return a chunk of text, reasoning or a tool call."""
        if isinstance(delta, ToolCallDelta):
            return self.choice_event(self._choice(delta.index, {"tool_calls": [call_delta_body(delta)]}))
        text: ChatDelta = {"reasoning_content": delta.text} if delta.reasoning else {"content": delta.text}
        choice = self._choice(delta.index, text)
        if self.request.logprobs is not None:
            choice["logprobs"] = logprobs_body(delta.logprobs)
        return self.choice_event(choice)

    def chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        """Return a chunk of a stream."""
        return {
            "id": self.head["id"],
            "created": self.head["created"],
            "model": self.head["model"],
            "object": "chat.completion.chunk",
            "choices": choices,
        }

    def last_choice(self, index: int, reason: FinishReason) -> ChatChunkChoice:
        """Return an empty delta with the finish reason."""
        return self._choice(index, {}, reason)

    def _choice(self, index: int, delta: ChatDelta, reason: FinishReason | None = None) -> ChatChunkChoice:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
