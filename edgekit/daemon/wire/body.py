"""What every way to ask has in common: sampling, limits, format, and what the caller wants of the reply.

It knows neither messages nor prompts; `chat.py`, `completion.py` and `ollama.py` do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from edgekit.daemon.wire.formats import SPELLINGS, read_format
from edgekit.daemon.wire.reading import Strict, same
from edgekit.errors import RequestError
from edgekit.generation.request import MAX_TOP_LOGPROBS, Sampling

__all__ = ["HARMLESS", "Common", "WireOptions", "common", "options", "read_logprobs", "sampling"]

# Parameters of the OpenAI API that do not change the answer's text here.
HARMLESS = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)


@dataclass(frozen=True, slots=True)
class WireOptions:
    """What a caller wants of the reply, beyond the answer itself.

    Attributes:
        model: The model it names; None if it names none.
        stream: Deltas as they come instead of one reply.
        include_usage: A streamed reply ends with the token counts.
    """

    model: str | None = None
    stream: bool = False
    include_usage: bool = False


def _stop(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Common(Strict):
    """Fields of chats and completions alike: OpenAI's, then those of vLLM, llama.cpp and edgekit."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_stop)] = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: Any = None

    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    json_schema: Any = None
    regex: Any = None
    structured_outputs: Any = None
    priority: int | None = None
    cache_prompt: bool | None = None
    speculation: bool | None = None
    deadline_s: float | None = None


def options(body: Common) -> WireOptions:
    """Return what the caller wants of the reply."""
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return WireOptions(model=body.model or None, stream=bool(body.stream), include_usage=usage)


def common(body: Common) -> dict[str, Any]:
    """Return the arguments of `ChatRequest` that chats and completions share.

    Raises:
        RequestError: A value out of its range, or two that contradict each other.
    """
    spelled = {name: value for name in SPELLINGS if (value := getattr(body, name)) is not None}
    return {
        "sampling": sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            # vLLM's -1 is llama.cpp's and our 0: off.
            top_k=0 if body.top_k == -1 else body.top_k,
            min_p=body.min_p,
            typical_p=body.typical_p,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            repetition_penalty=same("repeat_penalty", body.repetition_penalty, body.repeat_penalty),
            repeat_last_n=body.repeat_last_n,
            logit_bias=_logit_bias(body.logit_bias),
            seed=body.seed,
        ),
        "stop": tuple(body.stop or ()),
        "n": 1 if body.n is None else body.n,
        "deadline_s": body.deadline_s,
        "priority": body.priority or 0,
        "cache_prompt": body.cache_prompt is not False,
        "speculation": body.speculation,
        "response_format": read_format(body.response_format, body.structured_outputs, spelled),
    }


def sampling(**given: Any) -> Sampling:
    """Return the sampling; what is None keeps its default.

    Raises:
        RequestError: A value out of its range.
    """
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def read_logprobs(logprobs: bool | None, top_logprobs: int | None) -> int | None:
    """Return how many of the likeliest tokens to report, None for no report at all.

    Raises:
        RequestError: `top_logprobs` without `logprobs`, or out of its range.
    """
    if top_logprobs is not None and not 0 <= top_logprobs <= MAX_TOP_LOGPROBS:
        raise RequestError(f"`top_logprobs` must be between 0 and {MAX_TOP_LOGPROBS}", param="top_logprobs")
    if not logprobs:
        if top_logprobs:
            raise RequestError("`top_logprobs` needs `logprobs` to be true", param="top_logprobs")
        return None
    return top_logprobs or 0


def _logit_bias(given: Mapping[str, float] | None) -> dict[int, float] | None:
    """JSON has no keys but texts: they are token ids all the same."""
    if given is None:
        return None
    biases = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 9):
            raise RequestError("`logit_bias` maps token ids to numbers from -100 to 100", param="logit_bias")
        biases[int(key)] = bias
    return biases
