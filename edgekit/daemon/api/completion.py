"""Parses bodies of OpenAI's legacy completions API: a prompt without a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from edgekit.daemon.api.body import Common, ReplyOptions, common, max_tokens, max_tokens_name, options
from edgekit.daemon.api.json_body import decode
from edgekit.daemon.api.other_fields import COMPLETION_NOOP
from edgekit.daemon.api.validation import Integer, read, renamed, unsupported
from edgekit.errors import RequestError
from edgekit.generation.types import ChatRequest

__all__ = ["parse_completion"]

# The OpenAI API's own default.
_MAX_TOKENS = 16


def _without_false(value: object) -> object:
    """Return None for false: chats have a boolean of the same name."""
    return None if value is False else value


class _Body(Common):
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = COMPLETION_NOOP

    prompt: Any
    echo: bool | None = None
    logprobs: Annotated[Integer | None, BeforeValidator(_without_false)] = None


def parse_completion(
    data: bytes | Mapping[str, Any], *, request_id: str, client: str = ""
) -> tuple[ChatRequest, ReplyOptions]:
    """Parse a completion request; the arguments are those of `parse_chat`.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    fields = decode(data)
    body = read(_Body, fields)
    with renamed(max_tokens_name(body, "n_predict")):
        request = ChatRequest(
            id=request_id,
            client=client,
            prompt=_prompt(body.prompt),
            max_tokens=max_tokens(body.max_tokens, body.n_predict, default=_MAX_TOKENS),
            logprobs=body.logprobs,
            echo=bool(body.echo),
            **common(body),
        )
    return request, options(body)


def _prompt(value: object) -> str:
    prompts = value if isinstance(value, list) else [value]
    if any(isinstance(item, int | list) for item in prompts):
        raise unsupported("prompt", hint="send the prompt as a string", what="as token ids is not supported")
    if len(prompts) > 1:
        raise unsupported("prompt", hint="send one request per prompt", what="as a list of several is not supported")
    if not prompts or not isinstance(prompts[0], str):
        raise RequestError("`prompt` must be a string", param="prompt")
    return prompts[0]
