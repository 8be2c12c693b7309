"""What both doors say on the wire: the chat-completions body in, errors, usage and timings out.

It knows no transport: a door hands over bytes or a decoded object and gets the one `ChatRequest`. A parameter that
is not supported and would change the answer is refused rather than ignored; one that would not is accepted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from edgekit.errors import EdgekitError, RequestError, nearest
from edgekit.generation.request import ChatRequest, Message, Sampling, Timings, Usage

__all__ = ["WireOptions", "error_body", "error_type", "parse_chat", "printable", "timings_body", "usage_body"]

# Parameters of the OpenAI API that do not change the answer's text here.
_HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Parameters that would change it, with the values at which they do nothing (null always does nothing).
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}


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


def parse_chat(
    data: bytes | Mapping[str, Any], *, request_id: str, client: str = ""
) -> tuple[ChatRequest, WireOptions]:
    """Read a chat-completions request.

    Args:
        data: The body: JSON text, or the object it decodes to.
        request_id: Becomes `ChatRequest.id`.
        client: Becomes `ChatRequest.client`.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    fields = dict(_decode(data) if isinstance(data, bytes) else data)
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        # JSON can spell half a surrogate pair; no tokenizer and no reply can encode it.
        raise RequestError("the body holds half of a surrogate pair, which is not a character") from error
    for name in _HARMLESS:
        fields.pop(name, None)
    for name, neutral in _NEUTRAL.items():
        value = fields.pop(name, None)
        # 1 == True in Python: a bool is neutral only where a bool is listed.
        if value is not None and not any(
            value == item and isinstance(value, bool) == (item is False) for item in neutral
        ):
            raise RequestError(
                f"`{name}` is not supported", hint="leave it out", code="unsupported_parameter", param=name
            )
    try:
        body = _Body.model_validate(fields)
    except ValidationError as error:
        _refuse(error.errors(include_url=False, include_context=False)[0])
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    given = {
        name: value
        for name in ("temperature", "top_p", "top_k", "min_p", "seed")
        if (value := getattr(body, name)) is not None
    }
    request = ChatRequest(
        id=request_id,
        messages=tuple(Message(_ROLES[item.role], item.content) for item in body.messages),
        sampling=Sampling(**given),
        max_tokens=max_tokens,
        stop=() if body.stop is None else tuple(body.stop),
        deadline_s=body.deadline_s,
        client=client,
    )
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return request, WireOptions(model=body.model or None, stream=bool(body.stream), include_usage=usage)


def error_type(error: EdgekitError) -> str:
    """Return the OpenAI API's coarse class of an error; `code` is the precise one."""
    if error.code == "overloaded":
        return "rate_limit_error"
    if isinstance(error, RequestError) and error.code not in {"deadline_exceeded", "not_ready", "shutting_down"}:
        return "invalid_request_error"
    return "server_error"


def error_body(error: EdgekitError) -> dict[str, Any]:
    """Return `{"error": {…}}` with message, type, code, param and hint, as both doors send it."""
    body: dict[str, Any] = {
        "message": error.message,
        "type": error_type(error),
        "code": error.code,
        "param": error.param if isinstance(error, RequestError) else None,
        "hint": error.hint,
    }
    if isinstance(error, RequestError) and error.retry_after_s is not None:
        body["retry_after_s"] = error.retry_after_s
    return {"error": body}


def printable(text: str) -> str:
    """Return a caller's text as it may stand in a one-line message."""
    return "".join(char if char.isprintable() else "?" for char in text[:100])


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return the `usage` object of the OpenAI API."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def timings_body(timings: Timings, usage: Usage) -> dict[str, float]:
    """Return the `timings` object, an extension: seconds and tokens per second."""
    seconds = {"queue_s": timings.queue_s, "prefill_s": timings.prefill_s, "decode_s": timings.decode_s}
    return {name: round(value, 6) for name, value in {**seconds, **timings.as_rates(usage)}.items()}


_ROLES: Mapping[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    # OpenAI's newer name for it.
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def _text(value: object) -> object:
    """Join a list of text parts; leave anything else to the type's own check."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            if isinstance(kind, str) and kind != "text":
                raise PydanticCustomError("unsupported", "of this type is not supported; send text")
            raise PydanticCustomError("content", 'must be text, or a list of parts with `type` "text" and a `text`')
        texts.append(part["text"])
    return "\n".join(texts)


def _stop(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_text)]
    name: str | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    annotations: list[Any] | None = None


class _StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Body(_Strict):
    messages: list[_Message]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_stop)] = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    deadline_s: float | None = None


def _decode(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"the body is not JSON: {error}", hint='send {"messages": [{"role": "user", "content": "…"}]}'
        ) from error
    if not isinstance(value, dict):
        raise RequestError(f"the body must be a JSON object, not {type(value).__name__}")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse(problem: ErrorDetails) -> NoReturn:
    path = ""
    for step in problem["loc"]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    path = printable(path)
    kind = problem["type"]
    top = [*_Body.model_fields, *_NEUTRAL, *_HARMLESS]
    if kind == "extra_forbidden":
        near = nearest(path, top) if len(problem["loc"]) == 1 else None
        raise RequestError(
            f"`{path}` is not supported",
            hint=f"did you mean `{near}`?" if near else "leave it out",
            code="unsupported_parameter",
            param=path,
        )
    if kind == "unsupported" or problem["loc"][-1] in {"tool_calls", "function_call", "audio", "refusal"}:
        message = problem["msg"] if kind == "unsupported" else "is not supported"
        raise RequestError(f"`{path}` {message}", code="unsupported_parameter", param=path)
    if kind == "missing":
        raise RequestError(f"`{path}` is missing", param=path)
    message = problem["msg"]
    raise RequestError(f"`{path}`: {message[:1].lower()}{message[1:]}", param=path)
