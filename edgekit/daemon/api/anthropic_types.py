"""Types of the Messages API's reply bodies and events; the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

__all__ = [
    "AnthropicError",
    "AnthropicModel",
    "AnthropicModels",
    "Content",
    "MessageBody",
    "MessageEnd",
    "MessageEvent",
    "MessageHead",
    "MessageUsage",
    "TokenCount",
]


class AnthropicErrorDetails(TypedDict):
    """What is wrong, with edgekit's `code`."""

    type: str
    message: str
    code: str


class AnthropicError(TypedDict):
    """An error in Anthropic's format."""

    type: Literal["error"]
    error: AnthropicErrorDetails


class TokenCount(TypedDict):
    """The reply of `/v1/messages/count_tokens`."""

    input_tokens: int


class MessageUsage(TypedDict):
    """Token counts; prompt tokens from the cache are counted apart from the others."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class TextBlock(TypedDict):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(TypedDict):
    """The model's reasoning."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(TypedDict):
    """A tool call."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


Content = TextBlock | ThinkingBlock | ToolUseBlock


class TextDelta(TypedDict):
    """More text."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(TypedDict):
    """More of the model's reasoning."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(TypedDict):
    """The end of the model's reasoning."""

    type: Literal["signature_delta"]
    signature: str


class InputDelta(TypedDict):
    """More of a tool call's arguments, which are JSON."""

    type: Literal["input_json_delta"]
    partial_json: str


ContentDelta = TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class MessageHead(TypedDict):
    """What a message begins with."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str


class MessageEnd(TypedDict):
    """Why a message ended; null until then."""

    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None


class MessageBody(MessageHead, MessageEnd):
    """The reply of `/v1/messages`."""

    content: list[Content]
    usage: MessageUsage


class MessageEvent(TypedDict):
    """An event of a streamed message; which fields it has depends on its type."""

    type: Literal[
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    ]
    message: NotRequired[MessageBody]
    index: NotRequired[int]
    content_block: NotRequired[Content]
    delta: NotRequired[ContentDelta | MessageEnd]
    usage: NotRequired[MessageUsage]
    error: NotRequired[AnthropicErrorDetails]


class AnthropicModel(TypedDict):
    """The served model."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: int
    max_tokens: int


class AnthropicModels(TypedDict):
    """The served model, in a list."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str
    last_id: str
