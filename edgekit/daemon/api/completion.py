"""Parses bodies of OpenAI's legacy completions API: a prompt without a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, SkipValidation

from edgekit.daemon.api.body import Common, ReplyOptions, common, max_tokens, max_tokens_name, options
from edgekit.daemon.api.json_body import decode
from edgekit.daemon.api.other_fields import COMPLETION_INSTEAD, COMPLETION_NOOP
from edgekit.daemon.api.validation import Integer, read, renamed, unsupported
from edgekit.errors import RequestError
from edgekit.generation.types import MAX_CHOICES, ChatRequest, Infill

__all__ = ["MAX_PROMPTS", "CompletionBody", "Completions", "parse_completion", "parse_completions"]

MAX_PROMPTS = 128
"""Number of prompts in a request, and of choices for all of them together."""

# The OpenAI API's own default.
_MAX_TOKENS = 16
_MAX_TOKEN = 1 << 24


def _without_false(value: object) -> object:
    """Return None for false: chats have a boolean of the same name."""
    return None if value is False else value


class CompletionBody(Common):
    """A body of `/v1/completions`."""

    noop: ClassVar[Mapping[str, tuple[object, ...]]] = COMPLETION_NOOP
    instead: ClassVar[Mapping[str, str]] = COMPLETION_INSTEAD

    # `_prompts` reads it: a long list of token ids is checked once.
    prompt: SkipValidation[str | list[str] | list[int] | list[str | list[int]]]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[Integer | None, BeforeValidator(_without_false)] = None
    best_of: Integer | None = None


@dataclass(frozen=True, slots=True)
class Completions:
    """A parsed body.

    Attributes:
        requests: One for each prompt, alike otherwise.
        n: Number of choices returned for each prompt; a request may generate more.
        logprobs: Number of top log probabilities reported; None reports none.
    """

    requests: tuple[ChatRequest, ...]
    options: ReplyOptions
    n: int
    logprobs: int | None


def parse_completion(
    data: bytes | Mapping[str, Any], *, request_id: str, client: str = ""
) -> tuple[ChatRequest, ReplyOptions]:
    """Parse a completion request with one prompt; the arguments are those of `parse_chat`.

    Raises:
        RequestError: As `parse_completions`; or there are several prompts.
    """
    found = parse_completions(data, request_id=request_id, client=client)
    if len(found.requests) > 1:
        raise unsupported("prompt", hint="send one request per prompt", what="as a list of several is not supported")
    if found.requests[0].n > found.n:
        raise unsupported("best_of")
    return found.requests[0], found.options


def parse_completions(data: bytes | Mapping[str, Any], *, request_id: str, client: str = "") -> Completions:
    """Parse a completion request; the arguments are those of `parse_chat`.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    fields = decode(data)
    body = read(CompletionBody, fields)
    prompts = _prompts(body.prompt)
    shared = common(body)
    n = shared.pop("n")
    generated = _best_of(body, n)
    if len(prompts) > 1 and len(prompts) * generated > MAX_PROMPTS:
        raise RequestError(
            f"{len(prompts)} prompts have {len(prompts) * generated} choices; the limit is {MAX_PROMPTS}",
            hint="send fewer prompts at a time",
            param="n",
        )
    with renamed(max_tokens_name(body, "n_predict")):
        request = ChatRequest(
            id=request_id,
            client=client,
            prompt=prompts[0],
            max_tokens=max_tokens(max_tokens=body.max_tokens, n_predict=body.n_predict, default=_MAX_TOKENS),
            # The best are those with the highest log probability.
            logprobs=0 if body.logprobs is None and generated > n else body.logprobs,
            echo=bool(body.echo),
            infill=Infill(body.suffix) if body.suffix else None,
            n=generated,
            **shared,
        )
    requests = (request, *(replace(request, prompt=prompt) for prompt in prompts[1:]))
    return Completions(requests, options(body), n, body.logprobs)


def _best_of(body: CompletionBody, n: int) -> int:
    """Return the number of choices to generate, of which `n` are returned."""
    if body.best_of is None or body.best_of == n:
        return n
    if not max(1, n) < body.best_of <= MAX_CHOICES:
        raise RequestError(f"`best_of` must be between `n` and {MAX_CHOICES}", param="best_of")
    for name, given in (("stream", body.stream), ("echo", body.echo)):
        if given:
            raise RequestError(f"`best_of` cannot be combined with `{name}`", param="best_of")
    return body.best_of


def _prompts(value: object) -> list[str | tuple[int, ...]]:
    """Return the prompts: a string, a list of token ids, or a list of either."""
    given = value if isinstance(value, list) and not (value and _is_token(value[0])) else [value]
    if not given:
        raise RequestError("`prompt` is empty", param="prompt")
    if len(given) > MAX_PROMPTS:
        raise RequestError(
            f"`prompt` has {len(given)} prompts; the limit is {MAX_PROMPTS}",
            hint="send fewer at a time",
            param="prompt",
        )
    several = given is value
    return [_prompt(item, f"prompt[{number}]" if several else "prompt") for number, item in enumerate(given)]


def _prompt(value: object, at: str) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RequestError(f"`{at}` must be a string or a list of token ids", param=at)
    for number, token in enumerate(value):
        if not _is_token(token) or not 0 <= token <= _MAX_TOKEN:
            raise RequestError(f"`{at}[{number}]` must be a token id", param=f"{at}[{number}]")
    return tuple(map(int, value))


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
