"""Types of the Responses API's bodies and events; the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Literal

from typing_extensions import NotRequired, TypedDict

from edgekit.daemon.api.openai_types import TimingsBody, TokenLogprobBody
from edgekit.daemon.api.validation import Empty

__all__ = [
    "CallItem",
    "DeletedResponse",
    "InputTokens",
    "ItemList",
    "ListedItem",
    "MessageItem",
    "ReasoningItem",
    "ResponseError",
    "ResponseEvent",
    "ResponseObject",
    "ResponseUsage",
    "TextPart",
]

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class TextPart(TypedDict):
    """The text of an answer's message."""

    type: Literal["output_text"]
    text: str
    annotations: Empty
    logprobs: list[TokenLogprobBody]


class MessageItem(TypedDict):
    """An answer's message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[TextPart]


class CallItem(TypedDict):
    """A function call; `arguments` is JSON."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class ReasoningPart(TypedDict):
    """The text of the model's reasoning."""

    type: Literal["summary_text", "reasoning_text"]
    text: str


class ReasoningItem(TypedDict):
    """The model's reasoning."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[ReasoningPart]
    content: NotRequired[list[ReasoningPart]]
    encrypted_content: NotRequired[str]


class CachedTokens(TypedDict):
    """Prompt tokens, in detail."""

    cached_tokens: int
    cache_write_tokens: int


class ReasoningTokens(TypedDict):
    """Completion tokens, in detail."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Token counts."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseError(TypedDict):
    """Why a response failed; `type` is edgekit's code."""

    code: Literal["rate_limit_exceeded", "invalid_prompt", "server_error"]
    message: str
    type: str


class Incomplete(TypedDict):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseObject(TypedDict):
    """A response; it repeats the request's settings too."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    completed_at: int | None
    error: ResponseError | None
    incomplete_details: Incomplete | None
    output: list[MessageItem | CallItem | ReasoningItem]
    usage: ResponseUsage | None
    timings: NotRequired[TimingsBody]


class ResponseEvent(TypedDict):
    """An event of a streamed response; which fields it has depends on its type."""

    type: str
    sequence_number: int
    response: NotRequired[ResponseObject]
    item: NotRequired[MessageItem | CallItem | ReasoningItem]
    item_id: NotRequired[str]
    output_index: NotRequired[int]
    content_index: NotRequired[int]
    summary_index: NotRequired[int]
    part: NotRequired[TextPart | ReasoningPart]
    delta: NotRequired[str]
    text: NotRequired[str]
    name: NotRequired[str]
    arguments: NotRequired[str]
    logprobs: NotRequired[list[TokenLogprobBody]]


class AskedPart(TypedDict):
    """Text that the client sent."""

    type: Literal["input_text"]
    text: str


class AskedItem(TypedDict):
    """A message that the client sent."""

    id: str
    type: Literal["message"]
    role: Literal["system", "developer", "user"]
    status: str
    content: list[AskedPart]


class OutputItem(TypedDict):
    """The result of a function call."""

    id: str
    type: Literal["function_call_output"]
    status: str
    call_id: str
    output: str


ListedItem = AskedItem | MessageItem | CallItem | OutputItem | ReasoningItem


class InputTokens(TypedDict):
    """The reply of `/v1/responses/input_tokens`."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedResponse(TypedDict):
    """The reply to a deletion."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(TypedDict):
    """Items of a response's input."""

    object: Literal["list"]
    data: list[ListedItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
