"""A completions body, OpenAI's older way to ask: a text to continue as it is. It knows no transport."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.daemon.wire.body import HARMLESS, Common, WireOptions, common, options
from edgekit.daemon.wire.reading import decode, drop, read, unsupported
from edgekit.errors import RequestError
from edgekit.generation.request import ChatRequest

__all__ = ["parse_completion"]

# The OpenAI API's own default.
_MAX_TOKENS = 16

_NEUTRAL: Mapping[str, tuple[object, ...]] = {"best_of": (1,), "suffix": ("",)}


class _Body(Common):
    prompt: Any
    echo: bool | None = None
    logprobs: int | None = None


def parse_completion(
    data: bytes | Mapping[str, Any], *, request_id: str, client: str = ""
) -> tuple[ChatRequest, WireOptions]:
    """Read a completions request; the arguments are those of `parse_chat`.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    fields = decode(data)
    drop(fields, harmless=HARMLESS, neutral=_NEUTRAL)
    body = read(_Body, fields, also=[*_NEUTRAL, *HARMLESS])
    request = ChatRequest(
        id=request_id,
        client=client,
        prompt=_prompt(body.prompt),
        max_tokens=_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
        echo=bool(body.echo),
        **common(body),
    )
    return request, options(body)


def _prompt(value: object) -> str:
    prompts = value if isinstance(value, list) else [value]
    if any(isinstance(item, int | list) for item in prompts):
        raise unsupported("prompt", hint="send the text itself", what="as token ids is not supported")
    if len(prompts) > 1:
        raise unsupported("prompt", hint="send one request for each", what="as a list of several is not supported")
    if not prompts or not isinstance(prompts[0], str):
        raise RequestError("`prompt` must be a text", param="prompt")
    return prompts[0]
