"""Parses bodies of llama-server's `/completion` and `/infill`.

Parameters left out have edgekit's defaults, as in the other dialects. The order of the samplers is fixed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from edgekit.daemon.api.body import Common, ReplyOptions, common, max_tokens, max_tokens_name, options
from edgekit.daemon.api.json_body import decode
from edgekit.daemon.api.other_fields import COMPLETION_INSTEAD, COMPLETION_NOOP, IGNORED
from edgekit.daemon.api.validation import Integer, Strict, read, renamed, resolve_alias
from edgekit.errors import RequestError
from edgekit.generation.types import ChatRequest, Infill, LineLimits

__all__ = ["InfillBody", "LlamaCompletionBody", "LlamaServerCall", "parse_llama_completion", "parse_llama_infill"]

_MAX_FILES = 256
_OWN = {"n_indent", "return_tokens", "samplers", "t_max_predict_ms"}


@dataclass(frozen=True, slots=True)
class LlamaServerCall:
    """A parsed body.

    Attributes:
        request: The request.
        options: The model's name, and whether to stream.
        return_tokens: The reply has the completion's token ids.
        many: The reply is a list, as `n_cmpl` is greater than 1.
    """

    request: ChatRequest
    options: ReplyOptions
    return_tokens: bool
    many: bool


class _File(Strict):
    filename: str = "tmp"
    text: str = ""


class _Body(Common):
    ignored: ClassVar[frozenset[str]] = IGNORED | {"n_cache_reuse", "samplers", "sse_ping_interval", "t_max_prompt_ms"}
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {
        name: values for name, values in COMPLETION_NOOP.items() if name not in _OWN
    }
    instead: ClassVar[Mapping[str, str]] = COMPLETION_INSTEAD

    n_cmpl: Integer | None = None
    n_indent: Integer | None = None
    t_max_predict_ms: float | None = None
    return_tokens: bool | None = None


class LlamaCompletionBody(_Body):
    """A body of `/completion`."""

    prompt: str


class InfillBody(_Body):
    """A body of `/infill`."""

    input_prefix: str
    input_suffix: str
    input_extra: list[_File] = Field(default_factory=list)
    prompt: str | None = None


def parse_llama_completion(data: bytes, *, request_id: str, client: str = "") -> LlamaServerCall:
    """Parse a body of `/completion`.

    Args:
        data: The body.
        request_id: Becomes `ChatRequest.id`.
        client: Becomes `ChatRequest.client`.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    body = read(LlamaCompletionBody, _fields(data))
    return _call(body, id=request_id, client=client, prompt=body.prompt)


def parse_llama_infill(data: bytes, *, request_id: str, client: str = "") -> LlamaServerCall:
    """Parse a body of `/infill`; arguments and errors are those of `parse_llama_completion`."""
    body = read(InfillBody, _fields(data))
    if len(body.input_extra) > _MAX_FILES:
        raise RequestError(f"`input_extra` takes at most {_MAX_FILES} files", param="input_extra")
    files = tuple((file.filename, file.text) for file in body.input_extra)
    return _call(
        body,
        id=request_id,
        client=client,
        # llama-server puts `prompt`, the line up to the cursor, in front of the suffix too.
        prompt=body.input_prefix + (body.prompt or ""),
        infill=Infill(body.input_suffix, files, param="input_suffix"),
        truncation="auto",
    )


def _fields(data: bytes) -> dict[str, Any]:
    fields = decode(data)
    # Another value of llama.cpp for a random seed; `common` knows -1.
    if fields.get("seed") == 0xFFFFFFFF:
        del fields["seed"]
    if isinstance(fields.get("logit_bias"), list):
        fields["logit_bias"] = _bias_table(fields["logit_bias"])
    if isinstance(fields.get("temperature"), int | float) and fields["temperature"] < 0:
        fields["temperature"] = 0.0
    return fields


def _call(body: Any, **fields: Any) -> LlamaServerCall:
    n = resolve_alias("n_cmpl", n_cmpl=body.n_cmpl, n=body.n)
    n = 1 if n is None else n
    limit_ms = body.t_max_predict_ms
    limits = None
    if (limit_ms or 0) > 0 or body.n_indent:
        limits = LineLimits(limit_ms / 1000 if limit_ms and limit_ms > 0 else None, body.n_indent or 0)
    with renamed({**max_tokens_name(body, "n_predict"), "n": "n" if body.n_cmpl is None else "n_cmpl"}):
        shared = common(body)
        # Greedy answers are all alike: one is enough.
        shared["n"] = 1 if shared["sampling"].greedy and fields.get("infill") and n >= 1 else n
        request = ChatRequest(
            max_tokens=max_tokens(max_tokens=body.max_tokens, n_predict=body.n_predict),
            line_limits=limits,
            return_tokens=True,
            **fields,
            **shared,
        )
    return LlamaServerCall(request, options(body), bool(body.return_tokens), many=n > 1)


def _bias_table(pairs: list[Any]) -> dict[str, Any]:
    """Return llama.cpp's list of biases as OpenAI's object; false forbids a token."""
    table = {}
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise RequestError(
                "`logit_bias` must be an object, or a list of pairs of token id and bias", param="logit_bias"
            )
        token, bias = pair
        table[str(token)] = -100.0 if bias is False else bias
    return table
