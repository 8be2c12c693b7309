"""Parses bodies of `/tokenize` and `/detokenize`, as llama-server and vLLM define them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgekit.daemon.api.chat import parse_chat
from edgekit.daemon.api.json_body import decode
from edgekit.daemon.api.validation import Integer, Strict, read
from edgekit.errors import RequestError
from edgekit.generation.types import ChatRequest

__all__ = [
    "ContentBody",
    "Detokenize",
    "PromptBody",
    "Tokenize",
    "TokensBody",
    "read_detokenize",
    "read_tokenize",
]


@dataclass(frozen=True, slots=True)
class Tokenize:
    """What to tokenize.

    Attributes:
        model: The model's name; None if left out.
        text: The text; empty with `chat`.
        chat: A chat whose prompt is tokenized; None for a text.
        add_special: Tokens such as BOS are put in front.
        obey_special: Special tokens in the text become tokens.
        pieces: The reply has each token's text too.
        vllm: The reply has vLLM's form.
    """

    model: str | None
    text: str = ""
    chat: ChatRequest | None = None
    add_special: bool = False
    obey_special: bool = True
    pieces: bool = False
    vllm: bool = False


@dataclass(frozen=True, slots=True)
class Detokenize:
    """What to detokenize."""

    model: str | None
    tokens: tuple[int, ...]


class ContentBody(Strict):
    """llama-server's body of `/tokenize`."""

    model: str | None = None
    content: str
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class PromptBody(Strict):
    """vLLM's body of `/tokenize`."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokensBody(Strict):
    """A body of `/detokenize`."""

    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {"skip_special_tokens": (False,)}

    model: str | None = None
    tokens: list[Integer]


def read_tokenize(data: bytes, *, request_id: str) -> Tokenize:
    """Parse a body of `/tokenize`.

    Args:
        data: The body: llama-server's with `content`, or vLLM's with `prompt` or `messages`.
        request_id: Becomes the id of the chat.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    fields = decode(data)
    if "messages" in fields:
        return _chat(fields, request_id)
    if "prompt" in fields:
        body = read(PromptBody, fields)
        special = body.add_special_tokens is not False
        return Tokenize(body.model, body.prompt, add_special=special, pieces=bool(body.return_token_strs), vllm=True)
    try:
        plain = read(ContentBody, fields)
    except RequestError as error:
        if "content" not in fields and error.param == "content":
            raise RequestError(error.message, hint="send `content`, `prompt` or `messages`", param="content") from error
        raise
    return Tokenize(
        plain.model,
        plain.content,
        add_special=bool(plain.add_special),
        obey_special=plain.parse_special is not False,
        pieces=bool(plain.with_pieces),
    )


def _chat(fields: dict[str, Any], request_id: str) -> Tokenize:
    pieces = fields.pop("return_token_strs", None)
    if pieces is not None and not isinstance(pieces, bool):
        raise RequestError("`return_token_strs` must be true or false", param="return_token_strs")
    chat, options = parse_chat(fields, request_id=request_id)
    return Tokenize(options.model, chat=chat, pieces=bool(pieces), vllm=True)


def read_detokenize(data: bytes) -> Detokenize:
    """Parse a body of `/detokenize`.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    body = read(TokensBody, decode(data))
    for number, token in enumerate(body.tokens):
        if not 0 <= token < 1 << 24:
            raise RequestError(f"`tokens[{number}]` is not a token id", param=f"tokens[{number}]")
    return Detokenize(body.model, tuple(body.tokens))
