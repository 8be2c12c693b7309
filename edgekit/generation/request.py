"""The one request and the one stream of events; HTTP and MQTT only translate.

Ranges are checked here, so that no door can forget one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgekit.errors import EdgekitError, RequestError

__all__ = [
    "ChatRequest",
    "Delta",
    "Ended",
    "Event",
    "Failure",
    "Finish",
    "FinishReason",
    "Message",
    "ResponseFormat",
    "Sampling",
    "Timings",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "Usage",
]

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 128


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made.

    Attributes:
        arguments: A JSON object, as text.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    Attributes:
        tool_calls: Calls that an assistant's turn made.
        tool_call_id: Which call a tool's turn answers.
        name: Of the tool that answers, or of the speaker.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Attributes:
        parameters: JSON schema of the arguments; None takes no arguments.
        strict: The arguments are held to the schema by a grammar.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools are called.

    Attributes:
        mode: `auto` leaves it to the model; `none` forbids it; `required` demands at least one call.
        name: With `required`, the one tool to call; None leaves the choice to the model.
    """

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the answer must look like; it is enforced token by token, or refused before the first.

    Attributes:
        kind: `json_object` any JSON object; `json_schema` `value` is a schema; `regex` a pattern; `grammar` a grammar
            in Lark's syntax; `choice` a tuple of texts, one of which is the answer.
        name: The schema's name; it changes nothing.
    """

    kind: Literal["json_object", "json_schema", "regex", "grammar", "choice"]
    value: Any = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; names and meanings are the OpenAI API's, and llama.cpp's and Ollama's for the rest.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        typical_p: Locally typical sampling; 1 is off.
        presence_penalty: Subtracted once from every token that the answer holds.
        frequency_penalty: Subtracted as often as the answer holds the token.
        repetition_penalty: Divides what prompt and answer hold (llama.cpp's `repeat_penalty`); 1 is off.
        repeat_last_n: How far back `repetition_penalty` looks, in tokens; 0 is off, -1 all of the context.
        logit_bias: Added to the logits of these tokens.
        seed: None draws one.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    repeat_last_n: int = -1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        _in_range("temperature", self.temperature, 0.0, 2.0)
        _in_range("top_p", self.top_p, 0.0, 1.0)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("top_k", self.top_k, 0, 1_000_000)
        _in_range("typical_p", self.typical_p, 0.0, 1.0)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        _in_range("repeat_last_n", self.repeat_last_n, -1, 1 << 24)
        if len(self.logit_bias) > 1024:
            raise RequestError("`logit_bias` takes at most 1024 tokens", param="logit_bias")
        for token, bias in self.logit_bias.items():
            _in_range("logit_bias", token, 0, 1 << 24)
            _in_range("logit_bias", bias, -100.0, 100.0)
        if self.seed is not None:
            _in_range("seed", self.seed, -(2**63), 2**63 - 1)

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature < 1e-6 or self.top_k == 1

    @property
    def repeatable(self) -> bool:
        """Whether the same request must give the same answer: it is greedy, or names a seed."""
        return self.greedy or self.seed is not None

    def for_answer(self, index: int) -> Sampling:
        """The sampling of one of several answers: each has a seed of its own."""
        if self.seed is None or index == 0:
            return self
        return replace(self, seed=(self.seed + index + 2**63) % 2**64 - 2**63)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat to continue, or with `prompt` a text.

    Attributes:
        id: The caller's or the door's name for it; appears in replies, logs and metrics.
        messages: The chat; empty with `prompt`.
        prompt: Text to continue as it is, without a chat template; None with `messages`.
        max_tokens: Most tokens to generate; None means up to the context length. 0 only with `echo`.
        stop: Texts that end the answer; they are not part of it.
        deadline_s: Seconds from submission after which the answer is no longer wanted; None means never.
        client: Who asks, for fairness and logs: a peer address or an MQTT client's reply topic.
        tenant: Whose prompts these are: a prefix cached for one tenant is never used for another.
        priority: A request of a smaller number is served first, whoever asks.
        n: How many answers.
        logprobs: How many of the likeliest tokens to report at each place (0: only the chosen one); None is off.
        echo: The answer begins with the prompt; with `logprobs`, its tokens' too. Only with `prompt`.
        tools: What the model may call.
        parallel_tool_calls: More than one call in an answer is allowed.
        response_format: What the answer must look like.
        truncation: `auto` leaves out old messages where the prompt is too long, never a system message.
        speculation: Guess tokens ahead; None lets the daemon decide. The answer is the same.
        cache_prompt: The prompt's KV cache may be kept for later requests.
        reasoning: What the model thinks before it answers comes `apart` from the answer, or `inline` as the model wrote
            it, tags included.
        template_arguments: Further variables of the chat template, such as `enable_thinking`.
    """

    id: str
    messages: tuple[Message, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    deadline_s: float | None = None
    client: str = ""
    prompt: str | None = None
    tenant: str = ""
    priority: int = 0
    n: int = 1
    logprobs: int | None = None
    echo: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    truncation: Literal["disabled", "auto"] = "disabled"
    speculation: bool | None = None
    cache_prompt: bool = True
    reasoning: Literal["apart", "inline"] = "apart"
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no door may pass on."""
        if not self.messages and self.prompt is None:
            raise RequestError("`messages` must not be empty", param="messages")
        if self.messages and self.prompt is not None:
            raise RequestError("a request has `messages` or a `prompt`, not both", param="prompt")
        if self.max_tokens is not None:
            _in_range("max_tokens", self.max_tokens, 0 if self.echo else 1, 1_000_000)
        if len(self.stop) > 16 or any(not text or len(text) > 256 for text in self.stop):
            raise RequestError("`stop` takes at most 16 texts of 1 to 256 characters", param="stop")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise RequestError("the deadline has passed", code="deadline_exceeded", param="deadline_s")
        _in_range("priority", self.priority, -1000, 1000)
        _in_range("n", self.n, 1, MAX_CHOICES)
        if self.logprobs is not None:
            _in_range("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        if self.echo and self.prompt is None:
            raise RequestError("`echo` needs a `prompt`", param="echo")
        self._check_tools()

    def _check_tools(self) -> None:
        names = [tool.name for tool in self.tools]
        if len(names) > MAX_TOOLS:
            raise RequestError(f"`tools` takes at most {MAX_TOOLS}", param="tools")
        if len(set(names)) != len(names):
            raise RequestError("two tools have the same name", param="tools")
        if self.tools and self.prompt is not None:
            raise RequestError("`tools` need `messages`", param="tools")
        if self.tool_choice.mode == "required":
            if not self.tools:
                raise RequestError("`tool_choice` asks for a call, and there are no `tools`", param="tool_choice")
            if self.tool_choice.name is not None and self.tool_choice.name not in names:
                raise RequestError("`tool_choice` names a tool that is not there", param="tool_choice")
        if self.response_format and self.tools and self.tool_choice.mode == "required":
            raise RequestError(
                "a required tool call leaves no room for `response_format`",
                hint="leave out one of them",
                param="response_format",
            )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted, as the OpenAI API counts them.

    Attributes:
        cached_tokens: Of the prompt, those whose KV cache was there already.
        accepted_tokens: Of the completion, those that were guessed ahead rightly.
        rejected_tokens: Guessed ahead wrongly; they are in no other count.
        left_out_messages: Of the chat, those that are not in the prompt because it would have been too long.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    left_out_messages: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one request went, in seconds.

    Attributes:
        queue_s: Submission to the first step.
        prefill_s: First step to the first token.
        decode_s: First token to the last.
        slowest_token_s: Longest wait between two tokens of one answer.
        steps: Forward passes after the prompt.
        kv_bytes: KV cache held at the end.
    """

    queue_s: float
    prefill_s: float
    decode_s: float
    slowest_token_s: float = 0.0
    steps: int = 0
    kv_bytes: int = 0

    @property
    def first_token_s(self) -> float:
        """Submission to the first token."""
        return self.queue_s + self.prefill_s

    def as_rates(self, usage: Usage) -> Mapping[str, float]:
        """Prompt and decode tokens per second; a rate that was not measured is absent."""
        rates = {}
        computed = usage.prompt_tokens - usage.cached_tokens
        if self.prefill_s > 0 and computed > 0:
            rates["prompt_tokens_per_s"] = computed / self.prefill_s
        # The first token comes out of the prefill; decoding made the others.
        if self.decode_s > 0 and usage.completion_tokens > 1:
            rates["decode_tokens_per_s"] = (usage.completion_tokens - 1) / self.decode_s
        return rates


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and how likely it was, before temperature, penalties and grammar.

    Attributes:
        token: Its id.
        data: Its bytes; they need not be whole characters.
        logprob: Natural logarithm; None for the first token of a prompt, which nothing precedes.
        top: The likeliest tokens at this place, best first: id, bytes, logprob.
    """

    token: int
    data: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer: whole characters, never a part of one.

    Attributes:
        seq: Number of this delta within its request, from 0, without gaps.
        index: Which of the `n` answers.
        logprobs: The tokens that came since the delta before; only if they were asked for.
        reasoning: It is of what the model thinks before it answers, and not of the answer.
    """

    seq: int
    text: str
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call: the first carries id and name, all carry a piece of the arguments' JSON text.

    Attributes:
        seq: As in `Delta`, counted together with them.
        number: Which call of its answer, from 0.
        index: Which of the `n` answers.
    """

    seq: int
    number: int
    arguments: str
    id: str | None = None
    name: str | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """One of several answers is complete while others go on; nothing follows of it. `Finish` tells of the last.

    Attributes:
        index: Which of the `n` answers.
    """

    index: int
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is complete, or all of them; nothing follows.

    Attributes:
        reason: Of the first answer.
        reasons: Of all `n`, those that `Ended` told included.
    """

    reason: FinishReason
    usage: Usage
    timings: Timings
    reasons: tuple[FinishReason, ...] = ()

    def __post_init__(self) -> None:
        """One answer has one reason."""
        if not self.reasons:
            object.__setattr__(self, "reasons", (self.reason,))


@dataclass(frozen=True, slots=True)
class Failure:
    """The request failed; nothing follows."""

    error: EdgekitError


Event = Delta | ToolCallDelta | Ended | Finish | Failure


def _in_range(name: str, value: object, low: float, high: float) -> None:
    # Written so that NaN fails too.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        shown = f"{value:g}" if isinstance(value, float) and math.isfinite(value) else repr(value)
        raise RequestError(f"`{name}` must be between {low:g} and {high:g}, not {shown}", param=name)
