"""Fields that chat and completion bodies share: sampling, limits, response format and reply options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import SkipValidation

from edgekit.daemon.api.formats import ALIASES, Format, Schema, StructuredOutputs, read_format
from edgekit.daemon.api.other_fields import IGNORED
from edgekit.daemon.api.validation import Integer, Stop, Strict, renamed, resolve_alias
from edgekit.errors import RequestError
from edgekit.generation.types import MAX_TOP_LOGPROBS, Sampling

__all__ = ["Common", "ReplyOptions", "common", "max_tokens", "max_tokens_name", "options", "read_logprobs"]


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """What the body says about the reply rather than the generation.

    Attributes:
        model: The model's name; None if left out.
        stream: Stream the reply.
        include_usage: End a stream with the token counts.
    """

    model: str | None = None
    stream: bool = False
    include_usage: bool = False


class _StreamOptions(Strict):
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {"continuous_usage_stats": (False,)}

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Common(Strict):
    """Fields of both chats and completions: OpenAI's, then those of vLLM, llama.cpp and edgekit."""

    ignored: ClassVar[frozenset[str]] = IGNORED

    model: str | None = None
    max_tokens: Integer | None = None
    n_predict: Integer | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: Integer | None = None
    stop: Stop | None = None
    n: Integer | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # `read_format` reads it and `structured_outputs`: its errors are clearer.
    response_format: SkipValidation[Format | None] = None

    top_k: Integer | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Integer | None = None
    guided_json: SkipValidation[Schema | str | None] = None
    guided_regex: str | None = None
    guided_choice: SkipValidation[list[str] | None] = None
    guided_grammar: str | None = None
    grammar: str | None = None
    json_schema: SkipValidation[Schema | str | None] = None
    regex: str | None = None
    structured_outputs: SkipValidation[StructuredOutputs | None] = None
    priority: Integer | None = None
    cache_prompt: bool | None = None
    speculation: bool | None = None
    deadline_s: float | None = None


def options(body: Common) -> ReplyOptions:
    """Return the reply options."""
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return ReplyOptions(model=body.model or None, stream=bool(body.stream), include_usage=usage)


def max_tokens(*, default: int | None = None, **given: int | None) -> int | None:
    """Return the maximum number of generated tokens; None is up to the context length.

    Args:
        default: The value if there is none.
        given: The value by each of its names; negative ones mean no limit, as in llama.cpp.

    Raises:
        RequestError: Two names have different values.
    """
    value = resolve_alias("max_tokens", **given)
    if value is None:
        return default
    return None if value in (-1, -2) else value


def max_tokens_name(body: Common, *others: str) -> dict[str, str]:
    """Return the name under which a body has `max_tokens`, for `renamed`.

    Args:
        body: The body.
        others: The parameter's other names.
    """
    given = next((name for name in ("max_tokens", *others) if getattr(body, name) is not None), "max_tokens")
    return {"max_tokens": given}


def common(body: Common) -> dict[str, Any]:
    """Return the arguments of `ChatRequest` that chats and completions share.

    Raises:
        RequestError: A value is out of range, or two contradict each other.
    """
    # llama.cpp's clients send an empty grammar for none.
    aliases = {name: value for name in ALIASES if (value := getattr(body, name)) not in (None, "")}
    return {
        "sampling": _sampling(body),
        "stop": tuple(body.stop or ()),
        "n": 1 if body.n is None else body.n,
        "deadline_s": body.deadline_s,
        "priority": body.priority or 0,
        "cache_prompt": body.cache_prompt is not False,
        "speculation": body.speculation,
        "response_format": read_format(body.response_format, body.structured_outputs, aliases),
    }


def _sampling(body: Common) -> Sampling:
    with renamed({"repetition_penalty": "repeat_penalty"} if body.repetition_penalty is None else {}):
        return Sampling.of(
            temperature=body.temperature,
            top_p=body.top_p,
            # Off is -1 in vLLM, 0 in llama.cpp and here.
            top_k=0 if body.top_k == -1 else body.top_k,
            min_p=body.min_p,
            typical_p=body.typical_p,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            repetition_penalty=resolve_alias(
                "repeat_penalty", repetition_penalty=body.repetition_penalty, repeat_penalty=body.repeat_penalty
            ),
            repeat_last_n=body.repeat_last_n,
            logit_bias=_logit_bias(body.logit_bias),
            # A random one is -1 in vLLM and llama.cpp.
            seed=None if body.seed == -1 else body.seed,
        )


def read_logprobs(logprobs: bool | None, top_logprobs: int | None) -> int | None:
    """Return the number of top log probabilities to report; None reports none at all.

    Raises:
        RequestError: `top_logprobs` without `logprobs`, or out of range.
    """
    if top_logprobs is not None and not 0 <= top_logprobs <= MAX_TOP_LOGPROBS:
        raise RequestError(f"`top_logprobs` must be between 0 and {MAX_TOP_LOGPROBS}", param="top_logprobs")
    if not logprobs:
        if top_logprobs:
            raise RequestError("`top_logprobs` needs `logprobs` to be true", param="top_logprobs")
        return None
    return top_logprobs or 0


def _logit_bias(given: Mapping[str, float] | None) -> dict[int, float] | None:
    """Convert the keys to token ids: JSON keys are always strings. `Sampling` checks the ranges."""
    if given is None:
        return None
    biases = {}
    for key, bias in given.items():
        # Longer keys are no token ids, and slow to convert.
        if not (key.isascii() and key.isdecimal() and len(key) <= 9):
            raise RequestError("the keys of `logit_bias` must be token ids", param="logit_bias")
        biases[int(key)] = bias
    return biases
