"""Types of OpenAI's reply bodies, and of edgekit's additions to them; the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Literal

# pydantic needs the one of typing_extensions before Python 3.12.
from typing_extensions import NotRequired, TypedDict

__all__ = [
    "CallDelta",
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatCompletion",
    "ChatDelta",
    "ChatMessageBody",
    "ChatToolCall",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionLogprobs",
    "Costs",
    "ErrorBody",
    "ErrorDetails",
    "FunctionCall",
    "Logprobs",
    "ModelBody",
    "ModelList",
    "ReplyHead",
    "TimingsBody",
    "TokenBody",
    "TokenLogprobBody",
    "UsageBody",
]

Reason = Literal["stop", "length", "tool_calls", "cancelled"]


class ErrorDetails(TypedDict):
    """What is wrong; `code` is stable, and the same over MQTT."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    code: str
    param: str | None
    hint: str | None
    retry_after_s: NotRequired[float]


class ErrorBody(TypedDict):
    """An error."""

    error: ErrorDetails


class PromptDetails(TypedDict):
    """Prompt tokens, in detail."""

    cached_tokens: int


class CompletionDetails(TypedDict):
    """Completion tokens, in detail."""

    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class UsageBody(TypedDict):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TimingsBody(TypedDict):
    """Durations in seconds, speeds in tokens per second, energy in joules, and what the answer cost."""

    queue_s: float
    prefill_s: float
    decode_s: float
    first_token_s: float
    slowest_token_s: float
    prompt_tokens_per_s: NotRequired[float]
    decode_tokens_per_s: NotRequired[float]
    prefill_j: NotRequired[float]
    decode_j: NotRequired[float]
    joules_per_token: NotRequired[float]
    steps: int
    cached_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    kv_bytes: int
    left_out_messages: int


class TokenBody(TypedDict):
    """A token; `bytes` is exact, `token` shows an incomplete character as U+FFFD."""

    token: str
    logprob: float | None
    bytes: list[int]


class TokenLogprobBody(TokenBody):
    """A sampled token, and the most likely ones at its place."""

    top_logprobs: list[TokenBody]


class Logprobs(TypedDict):
    """Log probabilities of a chat's answer."""

    content: list[TokenLogprobBody]
    refusal: None


class FunctionCall(TypedDict):
    """The function of a tool call; `arguments` is JSON."""

    name: str
    arguments: str


class ChatToolCall(TypedDict):
    """A tool call."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessageBody(TypedDict):
    """The answer; `content` is null if there are only tool calls."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ChatToolCall]]
    refusal: NotRequired[None]


class ChatChoice(TypedDict):
    """One choice of a chat completion."""

    index: int
    message: ChatMessageBody
    logprobs: Logprobs | None
    finish_reason: Reason


class Costs(TypedDict):
    """What an answer cost."""

    usage: UsageBody
    timings: TimingsBody


class ReplyHead(TypedDict):
    """What every reply and every chunk begins with."""

    id: str
    created: int
    model: str


class ChatCompletion(ReplyHead, Costs):
    """The reply of `/v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class FunctionDelta(TypedDict):
    """A part of a function call: its name is in the first one only."""

    name: NotRequired[str]
    arguments: str


class CallDelta(TypedDict):
    """A part of a tool call: `id` and `type` are in the first one only."""

    index: int
    id: NotRequired[str | None]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class ChatDelta(TypedDict, total=False):
    """A part of an answer."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str
    tool_calls: list[CallDelta]


class ChatChunkChoice(TypedDict):
    """A part of one choice."""

    index: int
    delta: ChatDelta
    logprobs: Logprobs | None
    finish_reason: Reason | None


class ChatChunk(ReplyHead):
    """An event of a streamed chat completion; the last one is `[DONE]`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[UsageBody | None]
    timings: NotRequired[TimingsBody]


class CompletionLogprobs(TypedDict):
    """Log probabilities of a completion: columns, one row for each token."""

    text_offset: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None] | None


class CompletionChoice(TypedDict):
    """One choice of a completion, or a part of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason | None


class CompletionChunk(ReplyHead):
    """An event of a streamed completion; the last one is `[DONE]`."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: NotRequired[UsageBody | None]
    timings: NotRequired[TimingsBody]


class Completion(ReplyHead, Costs):
    """The reply of `/v1/completions`."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelFacts(TypedDict):
    """The model's sizes, by llama-server's names."""

    n_ctx_train: int
    n_params: int
    n_embd: int
    n_vocab: int
    size: int


class ModelBody(TypedDict):
    """The served model, by its name or an alias; `root` is its name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    context_length: int
    max_model_len: int
    meta: ModelFacts


class ModelList(TypedDict):
    """The served model, in a list."""

    object: Literal["list"]
    data: list[ModelBody]
