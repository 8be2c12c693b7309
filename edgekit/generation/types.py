"""The request and the event stream of generation; HTTP and MQTT only translate.

Values are range-checked here, once for both APIs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgekit.errors import EdgekitError, RequestError, spelled
from edgekit.generation.usage import Timings, Usage

__all__ = [
    "ChatRequest",
    "ChoiceFinished",
    "Delta",
    "Event",
    "Failure",
    "FinishReason",
    "Finished",
    "Infill",
    "LineLimits",
    "Message",
    "ResponseFormat",
    "Restarted",
    "Sampling",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "UsedTokens",
    "check_tool_names",
]

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]

MODEL_SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty"})
"""Sampling parameters for which a model may have a default of its own, in its manifest."""
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 128


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call by the model.

    Attributes:
        arguments: A JSON object, serialized.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """A chat message.

    Attributes:
        tool_calls: Calls in an assistant message.
        reasoning: The model's reasoning before an assistant message; the chat template decides whether it is shown.
        tool_call_id: The call that a tool message answers.
        name: Name of the tool, or of the participant.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Attributes:
        parameters: JSON Schema of the arguments; None takes no arguments.
        strict: A schema that a grammar cannot enforce is rejected; otherwise such a tool takes any JSON object.
        param: Path of `parameters` in the request, for errors.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False
    param: str = field(default="tools", compare=False)


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model calls tools.

    Attributes:
        mode: `auto` leaves it to the model; `none` forbids it; `required` demands at least one call.
        name: With `required`, the tool to call; None leaves the choice to the model.
    """

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """Structured output, enforced by constrained decoding; a format that cannot be enforced is rejected up front.

    Attributes:
        kind: `json_object`: any JSON object; otherwise `value` is, for `json_schema` a schema, for `regex` a pattern,
            for `grammar` a grammar in Lark's syntax, for `choice` a tuple of strings, one of which is the output.
        name: The schema's name; has no effect.
        param: The value's path in the request, for errors.
    """

    kind: Literal["json_object", "json_schema", "regex", "grammar", "choice"]
    value: Any = None
    name: str = ""
    param: str = field(default="response_format", compare=False)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters, as the OpenAI API defines them; the others as llama.cpp and Ollama do.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 turns it off.
        typical_p: Locally typical sampling; 1 turns it off.
        presence_penalty: Subtracted once from the logit of every token in the completion.
        frequency_penalty: Subtracted once for each occurrence in the completion.
        repetition_penalty: Scales down tokens of prompt and completion (llama.cpp's `repeat_penalty`); 1 turns it off.
        repeat_last_n: Window of `repetition_penalty` in tokens; 0 turns it off, -1 is the full context.
        logit_bias: Added to the logits of these token ids.
        seed: None takes a random one.
        seed_given: Whether the caller chose the seed, and so must get the same output again. Otherwise an equal seed
            repeats it where that costs nothing.
        left_to_model: Names in `MODEL_SAMPLING` that the request does not state.
    """

    temperature: float = 0.0
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
    seed_given: bool = True
    left_to_model: frozenset[str] = frozenset()

    @classmethod
    def of(cls, **given: Any) -> Sampling:
        """Return the sampling of a request; values of None are left to the model, or have their defaults.

        Raises:
            RequestError: A value is out of range.
        """
        stated = {name: value for name, value in given.items() if value is not None}
        return cls(**stated, left_to_model=frozenset(MODEL_SAMPLING - stated.keys()))

    def with_defaults(self, defaults: Mapping[str, float]) -> Sampling:
        """Return it with a model's defaults where the request leaves a value to the model."""
        taken: dict[str, Any] = {name: value for name, value in defaults.items() if name in self.left_to_model}
        return replace(self, **taken, left_to_model=frozenset())

    def __post_init__(self) -> None:
        """Reject values outside their ranges."""
        _in_range("temperature", self.temperature, 0.0, 2.0)
        _in_range("top_p", self.top_p, 0.0, 1.0)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("top_k", self.top_k, 0, 1_000_000)
        if not isinstance(self.top_k, int):
            raise RequestError(f"`top_k` must be an integer, not {self.top_k!r}", param="top_k")
        _in_range("typical_p", self.typical_p, 0.0, 1.0)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        _in_range("repeat_last_n", self.repeat_last_n, -1, 1 << 24)
        if len(self.logit_bias) > 1024:
            raise RequestError("`logit_bias` takes at most 1024 tokens", param="logit_bias")
        for token, bias in self.logit_bias.items():
            _in_range("logit_bias", token, 0, 1 << 24, what="a token id of `logit_bias`")
            _in_range("logit_bias", bias, -100.0, 100.0, what="a bias of `logit_bias`")
        if self.seed is not None:
            _in_range("seed", self.seed, -(2**63), 2**63 - 1)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Check the token ids against the model's vocabulary.

        Raises:
            RequestError: `logit_bias` names a token outside the vocabulary.
        """
        token = max(self.logit_bias, default=0)
        if token >= vocab_size:
            raise RequestError(f"`logit_bias` names token {token}; the vocabulary has {vocab_size}", param="logit_bias")

    @property
    def greedy(self) -> bool:
        """Whether sampling is deterministic without a seed."""
        return self.temperature < 1e-6 or self.top_k == 1

    @property
    def repeatable(self) -> bool:
        """Whether the same request must give the same output: it is greedy or has a seed of the caller's."""
        return self.greedy or (self.seed is not None and self.seed_given)

    def for_choice(self, index: int) -> Sampling:
        """Return the sampling of one of `n` choices, each with its own seed."""
        if self.seed is None or index == 0:
            return self
        return replace(self, seed=(self.seed + index + 2**63) % 2**64 - 2**63)


@dataclass(frozen=True, slots=True)
class Infill:
    """Fill in the middle: the output belongs between a request's `prompt` and this suffix.

    Attributes:
        suffix: Text after the gap.
        files: Other files or snippets that the text refers to, name and text of each, the most relevant last.
        param: Name of the suffix in the request, for errors.
    """

    suffix: str
    files: tuple[tuple[str, str], ...] = ()
    param: str = field(default="suffix", compare=False)


@dataclass(frozen=True, slots=True)
class LineLimits:
    """Ends code completions early, as llama.cpp does.

    Attributes:
        seconds: After this time from the first token, the output ends with its line; None is no limit.
        min_indent: The output ends before a line that is indented by fewer spaces or tabs; 0 is no limit.
    """

    seconds: float | None = None
    min_indent: int = 0

    def __post_init__(self) -> None:
        """Reject values outside their ranges."""
        if self.seconds is not None and not self.seconds > 0:
            raise RequestError("`t_max_predict_ms` must be greater than 0", param="t_max_predict_ms")
        _in_range("n_indent", self.min_indent, 0, 1 << 16)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion request or, with `prompt`, a text completion request.

    Attributes:
        id: Request id, from the caller or the API; appears in replies, logs and metrics.
        messages: The chat; empty with `prompt`.
        prompt: Text to continue, without a chat template, or its token ids, which are used as they are; None with
            `messages`.
        max_tokens: Maximum tokens to generate; None is up to the context length. 0 only with `echo` or `infill`.
        stop: Stop strings; they end the output and are not part of it.
        deadline_s: Seconds from submission after which the request fails; None is no deadline.
        client: The client, for fair queueing and logs: a peer address or an MQTT client's response topic.
        tenant: Owner of the prompts: cached prefixes are not shared between tenants.
        priority: Requests with a smaller number are served first, across clients.
        share: The client's weight in the fair queue: with 2 it gets twice the tokens of one with 1 while both wait.
        n: Number of choices.
        logprobs: Number of top tokens to report per position (0: the sampled token alone); None turns it off.
        echo: The output starts with the prompt; with `logprobs`, the prompt's logprobs too. Only with `prompt`.
        tools: Tools that the model may call.
        parallel_tool_calls: Allows more than one call per choice.
        response_format: Structured output.
        truncation: `auto` drops old messages, never system messages, when the prompt is too long.
        speculation: Speculative decoding with draft tokens; None takes the daemon's setting. The output is the same.
        cache_prompt: The prompt's KV cache may be kept for later requests.
        reasoning: `apart` sends the model's reasoning separately; `inline` leaves it in the text, tags included.
        template_arguments: Additional variables of the chat template, such as `enable_thinking`.
        turn: `new` starts the assistant's turn after the messages; `continue` continues the last message, which is left
            open; `none` adds nothing to the messages.
        infill: What follows the gap at the end of `prompt`, which the output fills; None continues the prompt.
        context: Token ids in front of a chat's prompt: those of earlier turns. Only with `messages`.
        line_limits: Ends the output at the end of a line; None does not.
        return_tokens: `Finished` has the token ids of prompt and output.
    """

    id: str
    messages: tuple[Message, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    deadline_s: float | None = None
    client: str = ""
    prompt: str | tuple[int, ...] | None = None
    tenant: str = ""
    priority: int = 0
    share: float = 1.0
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
    turn: Literal["new", "continue", "none"] = "new"
    infill: Infill | None = None
    context: tuple[int, ...] = ()
    line_limits: LineLimits | None = None
    return_tokens: bool = False

    def __post_init__(self) -> None:
        """Reject invalid combinations and values outside their ranges."""
        if not self.messages and self.prompt is None:
            raise RequestError("`messages` must not be empty", param="messages")
        if self.messages and self.prompt is not None:
            raise RequestError("a request has `messages` or a `prompt`, not both", param="prompt")
        if self.max_tokens is not None:
            empty = self.echo or self.infill is not None
            _in_range("max_tokens", self.max_tokens, 0 if empty else 1, 1_000_000)
        if len(self.stop) > 16 or any(not text or len(text) > 256 for text in self.stop):
            raise RequestError("`stop` takes at most 16 strings of 1 to 256 characters", param="stop")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise RequestError("the deadline has passed", code="deadline_exceeded", param="deadline_s")
        _in_range("priority", self.priority, -1000, 1000)
        _in_range("share", self.share, 0.01, 100.0)
        _in_range("n", self.n, 1, MAX_CHOICES)
        if self.logprobs is not None:
            _in_range("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        if self.echo and self.prompt is None:
            raise RequestError("`echo` needs a `prompt`", param="echo")
        self._check_prompt()
        self._check_infill()
        self._check_tools()

    def _check_prompt(self) -> None:
        if isinstance(self.prompt, tuple):
            for token in self.prompt:
                _in_range("prompt", token, 0, 1 << 24, what="a token id of `prompt`")
        if self.turn == "new":
            return
        if self.prompt is not None:
            raise RequestError("a prompt that is continued has no turns", param="prompt")
        if self.turn == "continue" and (self.messages[-1].tool_calls or not self.messages[-1].content):
            raise RequestError(
                "the last message cannot be continued: it "
                + ("has tool calls" if self.messages[-1].tool_calls else "is empty"),
                param="messages",
            )

    def _check_infill(self) -> None:
        if self.infill is not None:
            if not isinstance(self.prompt, str):
                raise RequestError(f"`{self.infill.param}` needs a `prompt` that is text", param=self.infill.param)
            if self.echo:
                raise RequestError(f"`{self.infill.param}` cannot be combined with `echo`", param="echo")
        if self.context and not self.messages:
            raise RequestError("`context` cannot be combined with a prompt that is continued", param="context")
        for token in self.context:
            _in_range("context", token, 0, 1 << 24, what="a token id of `context`")

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
                raise RequestError("`tool_choice` requires a call, but `tools` is empty", param="tool_choice")
            if self.tool_choice.name is not None:
                check_tool_names([self.tool_choice.name], self.tools)
        if self.response_format and self.tools and self.tool_choice.mode == "required":
            raise RequestError(
                "a required tool call cannot be combined with `response_format`",
                hint="leave out one of them",
                param="response_format",
            )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and its log probability, before temperature, penalties and grammar.

    Attributes:
        token: Token id.
        data: The token's bytes; not necessarily complete characters.
        logprob: Natural logarithm; None for a prompt's first token, which has no context.
        top: The most likely tokens at this position, best first: id, bytes, logprob.
    """

    token: int
    data: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A text delta of one choice: complete characters only.

    Attributes:
        seq: Sequence number of this delta within its request, from 0, without gaps.
        index: Index of the choice.
        logprobs: The tokens since the previous delta, if logprobs were requested.
        reasoning: The text is reasoning, not part of the answer.
    """

    seq: int
    text: str
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A tool-call delta: the first one has id and name; each has a fragment of the arguments' JSON.

    Attributes:
        seq: As in `Delta`; both kinds are numbered together.
        number: Index of the call within its choice.
        index: Index of the choice.
    """

    seq: int
    number: int
    arguments: str
    id: str | None = None
    name: str | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """One of several choices is complete while others continue; the last one's end is reported by `Finished`.

    Attributes:
        index: Index of the choice.
    """

    index: int
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class UsedTokens:
    """Token ids of a completed request.

    Attributes:
        prompt: The prompt.
        outputs: The output of each choice, including the token that ended it.
    """

    prompt: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The request is complete; the last event.

    Attributes:
        reason: The first choice's finish reason.
        reasons: The finish reasons of all `n` choices.
        stops: The stop string that ended each choice; None where none did.
        tokens: Its token ids; None unless the request has `return_tokens`.
    """

    reason: FinishReason
    usage: Usage
    timings: Timings
    reasons: tuple[FinishReason, ...] = ()
    stops: tuple[str | None, ...] = ()
    tokens: UsedTokens | None = None

    def __post_init__(self) -> None:
        """Default `reasons` to the one reason."""
        if not self.reasons:
            object.__setattr__(self, "reasons", (self.reason,))


@dataclass(frozen=True, slots=True)
class Failure:
    """The request failed; the last event."""

    error: EdgekitError


@dataclass(frozen=True, slots=True)
class Restarted:
    """A daemon started the answer anew, as after a crash: discard the deltas so far; new ones follow from 0.

    Only the MQTT client yields it: see `docs/mqtt.md`.
    """


Event = Delta | ToolCallDelta | ChoiceFinished | Finished | Failure


def check_tool_names(names: Sequence[str], tools: Sequence[Tool]) -> None:
    """Check the names in a `tool_choice`.

    Raises:
        RequestError: One of them is not among `tools`.
    """
    known = {tool.name for tool in tools}
    for name in names:
        if name not in known:
            raise RequestError(
                f"`tool_choice` names the tool `{name[:100]}`, which is not among `tools`", param="tool_choice"
            )


def _in_range(name: str, value: object, low: float, high: float, *, what: str = "") -> None:
    # NaN is between no two numbers.
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return
    shown = spelled(value) if isinstance(value, int | float) else repr(value)
    bounds = f"between {spelled(low)} and {spelled(high)}"
    raise RequestError(f"{what or f'`{name}`'} must be {bounds}, not {shown}", param=name)
