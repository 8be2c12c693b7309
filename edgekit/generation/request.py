"""The one request and the one stream of events; HTTP and MQTT only translate.

Ranges are checked here, so that no door can forget one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgekit.errors import EdgekitError, RequestError

__all__ = [
    "ChatRequest",
    "Delta",
    "Event",
    "Failure",
    "Finish",
    "FinishReason",
    "Message",
    "Sampling",
    "Timings",
    "Usage",
]

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; names and meanings are the OpenAI API's, and llama.cpp's for top_k and min_p.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        seed: None draws one.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        _in_range("temperature", self.temperature, 0.0, 2.0)
        _in_range("top_p", self.top_p, 0.0, 1.0)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("top_k", self.top_k, 0, 1_000_000)
        if self.seed is not None:
            _in_range("seed", self.seed, -(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat to continue.

    Attributes:
        id: The caller's or the door's name for it; appears in replies, logs and metrics.
        max_tokens: Most tokens to generate; None means up to the context length.
        stop: Texts that end the answer; they are not part of it.
        deadline_s: Seconds from submission after which the answer is no longer wanted; None means never.
        client: Who asks, for fairness and logs: a peer address or an MQTT client's reply topic.
    """

    id: str
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    deadline_s: float | None = None
    client: str = ""

    def __post_init__(self) -> None:
        """Refuse what no door may pass on."""
        if not self.messages:
            raise RequestError("`messages` must not be empty", param="messages")
        if self.max_tokens is not None:
            _in_range("max_tokens", self.max_tokens, 1, 1_000_000)
        if len(self.stop) > 16 or any(not text or len(text) > 256 for text in self.stop):
            raise RequestError("`stop` takes at most 16 texts of 1 to 256 characters", param="stop")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise RequestError("the deadline has passed", code="deadline_exceeded", param="deadline_s")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted, as the OpenAI API counts them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one request went, in seconds."""

    queue_s: float
    prefill_s: float
    decode_s: float

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
class Delta:
    """A piece of the answer: whole characters, never a part of one.

    Attributes:
        seq: Number of this delta within its answer, from 0, without gaps.
    """

    seq: int
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is complete; nothing follows."""

    reason: FinishReason
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failure:
    """The request failed; nothing follows."""

    error: EdgekitError


Event = Delta | Finish | Failure


def _in_range(name: str, value: object, low: float, high: float) -> None:
    # Written so that NaN fails too.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RequestError(f"`{name}` must be between {low:g} and {high:g}, not {value!r}", param=name)
