"""Parses Ollama's bodies of `/api/chat` and `/api/generate`.

Options that control how Ollama loads a model are accepted and ignored. A context longer than the daemon's, and unknown
options and fields, which Ollama ignores too, are ignored with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, SkipValidation

from edgekit.daemon.api.body import read_logprobs
from edgekit.daemon.api.formats import OllamaFormat, read_ollama_format
from edgekit.daemon.api.ignored import near_name
from edgekit.daemon.api.json_body import decode, shown
from edgekit.daemon.api.ollama_messages import OllamaMessage, no_images, read_ollama_messages
from edgekit.daemon.api.tools import FunctionTool, read_tools
from edgekit.daemon.api.validation import Empty, Integer, Stop, Strict, printable, read, renamed, unsupported
from edgekit.errors import RequestError
from edgekit.generation.types import ChatRequest, Infill, Message, Sampling

__all__ = ["OllamaCall", "OllamaChatBody", "OllamaGenerateBody", "parse_ollama_chat", "parse_ollama_generate"]

# Accepted values of `think`, by whether the model can reason; no supported model has effort levels.
_THINK: Mapping[bool, tuple[object, ...]] = {True: (False, True), False: (False,)}
# Control how Ollama loads a model; the daemon's is already loaded.
_LOADING = {
    "draft_num_predict",
    "embedding_only",
    "f16_kv",
    "logits_all",
    "low_vram",
    "main_gpu",
    "num_batch",
    "num_gpu",
    "num_keep",
    "num_thread",
    "numa",
    "use_mlock",
    "use_mmap",
    "vocab_only",
}
_MAX_WARNINGS = 8
_CONTENT = {"messages", "model", "prompt", "suffix"}
# Have an effect only with `mirostat`, which is rejected.
_MIROSTAT = {"mirostat_eta", "mirostat_tau"}


# Ollama's names of the request's fields.
_NAMES: Mapping[str, str] = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    **{
        name: f"options.{name}"
        for name in (
            *("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n"),
            *("presence_penalty", "frequency_penalty", "seed", "stop"),
        )
    },
}


@dataclass(frozen=True, slots=True)
class OllamaCall:
    """A parsed body.

    Attributes:
        request: The request; None if the body only loads the model.
        model: The model's name.
        stream: Stream the reply; Ollama's default.
        unload: The body asks to unload the model.
        warnings: What the request asked for and did not get.
    """

    request: ChatRequest | None
    model: str
    stream: bool
    warnings: tuple[str, ...] = ()
    unload: bool = False


class OllamaOptions(Strict):
    """`options` of Ollama's API; unknown ones are ignored with a warning."""

    ignored: ClassVar[frozenset[str]] = frozenset(_LOADING | _MIROSTAT)
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "mirostat": (0,),
        "penalize_newline": (True,),
        "tfs_z": (1,),
    }

    num_ctx: Integer | None = None
    num_predict: Integer | None = None
    seed: Integer | None = None
    temperature: float | None = None
    top_k: Integer | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Integer | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: Stop | None = None


class _Body(Strict):
    ignored: ClassVar[frozenset[str]] = frozenset({"shift"})
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {"_debug_render_only": (False,)}

    model: str
    # Seconds, or a duration such as "5m".
    keep_alive: SkipValidation[bool | float | str | None] = None
    stream: bool | None = None
    # `read_ollama_format` reads it.
    format: SkipValidation[OllamaFormat | None] = None
    # Read by `_read`, without the unknown ones.
    options: SkipValidation[OllamaOptions | None] = None
    logprobs: bool | None = None
    top_logprobs: Integer | None = None
    truncate: bool | None = None
    think: SkipValidation[bool | Literal["high", "medium", "low"] | None] = None


class OllamaChatBody(_Body):
    """A body of `/api/chat`."""

    messages: list[OllamaMessage] | None = None
    # `read_tools` reads them: its errors are clearer.
    tools: SkipValidation[list[FunctionTool] | None] = None


class OllamaGenerateBody(_Body):
    """A body of `/api/generate`."""

    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {**_Body.noop, "template": ("",)}

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    context: list[Integer] | None = None
    raw: bool | None = None
    images: Annotated[Empty | None, BeforeValidator(no_images)] = None


# What would be dropped, and with it all that was asked: the field, its endpoint, and what the body lacks then.
_OTHER: Mapping[type[_Body], tuple[str, str, tuple[str, ...]]] = {
    OllamaChatBody: ("prompt", "/api/generate", ("messages",)),
    OllamaGenerateBody: ("messages", "/api/chat", ("prompt", "suffix")),
}


def parse_ollama_chat(
    data: bytes, *, request_id: str, client: str, context_length: int, thinks: bool = False
) -> OllamaCall:
    """Parse a body of `/api/chat`.

    Args:
        data: The body.
        request_id: Becomes `ChatRequest.id`.
        client: Becomes `ChatRequest.client`.
        context_length: The model's context length; a larger `num_ctx` is a warning.
        thinks: The model can reason before it answers, so `think` may be true.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    body, shared, warnings = _read(OllamaChatBody, data, context_length, thinks=thinks)
    request = None
    if body.messages:
        request = _request(
            id=request_id,
            client=client,
            messages=read_ollama_messages(body.messages),
            tools=read_tools(body.tools),
            truncation="disabled" if body.truncate is False else "auto",
            **shared,
        )
    return _call(body, request, warnings)


def parse_ollama_generate(
    data: bytes, *, request_id: str, client: str, context_length: int, thinks: bool = False
) -> OllamaCall:
    """Parse a body of `/api/generate`; arguments as above.

    It is a chat of one message, after the tokens of `context`; with `raw` a prompt that is continued; with `suffix` a
    gap to fill.
    """
    body, shared, warnings = _read(OllamaGenerateBody, data, context_length, thinks=thinks)
    named = {"id": request_id, "client": client}
    truncation = "disabled" if body.truncate is False else "auto"
    prompt, suffix = body.prompt or "", body.suffix or ""
    if body.raw:
        for name in ("system", "context"):
            if getattr(body, name):
                raise RequestError(f"`{name}` cannot be combined with `raw`", param=name)
        warnings += _without_effect("suffix", "raw") if suffix else ()
        fields: dict[str, Any] = {"prompt": prompt, "template_arguments": {}}
    elif suffix:
        for name in ("system", "context"):
            warnings += _without_effect(name, "suffix") if getattr(body, name) else ()
        fields = {"prompt": prompt, "infill": Infill(suffix), "truncation": truncation, "template_arguments": {}}
    else:
        system = (Message("system", body.system),) if body.system else ()
        fields = {
            "messages": (*system, Message("user", prompt)),
            "context": tuple(body.context or ()),
            "truncation": truncation,
            "return_tokens": True,
        }
    request = _request(**named, **{**shared, **fields}) if prompt or fields.get("infill") else None
    return _call(body, request, warnings)


def _without_effect(name: str, because: str) -> tuple[str, ...]:
    return (f"`{name}` has no effect with `{because}`",)


def _call(body: _Body, request: ChatRequest | None, warnings: tuple[str, ...]) -> OllamaCall:
    unload = request is None and not isinstance(body.keep_alive, bool) and body.keep_alive in (0, "0", "0s", "0m")
    if unload:
        warnings += ("the model stays loaded as long as the daemon runs",)
    return OllamaCall(request, body.model, stream=body.stream is not False, warnings=warnings, unload=unload)


@renamed(_NAMES)
def _request(**fields: Any) -> ChatRequest:
    return ChatRequest(**fields)


def _read(
    model: type[Any], data: bytes, context_length: int, *, thinks: bool
) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """Return the body, the arguments of `ChatRequest` that both endpoints have in common, and warnings."""
    fields = decode(data)
    other, theirs, own = _OTHER[model]
    if fields.get(other) and not any(fields.get(name) for name in own):
        raise unsupported(other, hint=f"use `{theirs}`, or send `{own[0]}`", what="is of another endpoint")
    unknown = _drop_unknown_fields(model, fields)
    body = read(model, fields)
    think = body.think
    if think is not None and not any(think is known for known in _THINK[thinks]):
        if not thinks:
            raise unsupported("think", what=f"is not supported: the model `{printable(body.model)}` cannot reason")
        what = (
            "has a level, and this model has none"
            if isinstance(think, str)
            else f"must be true or false, not {shown(think)}"
        )
        raise unsupported("think", hint="send true or false", what=what)
    asked = body.options or {}
    if not isinstance(asked, Mapping):
        raise RequestError(f"`options` must be an object, not {shown(asked)}", param="options")
    given: dict[str, Any] = dict(asked)
    warnings = [*unknown, *_drop_unknown(given)]
    options = read(OllamaOptions, given, at="options")
    if options.num_ctx is not None and options.num_ctx > context_length:
        warnings.append(f"`num_ctx` is {options.num_ctx}, but the context holds {context_length} tokens")
    max_tokens = options.num_predict
    return (
        body,
        {
            "sampling": _sampling(options),
            # -1 means unlimited, -2 up to the context length: the same here.
            "max_tokens": max_tokens if max_tokens is not None and max_tokens > 0 else None,
            "stop": tuple(options.stop or ()),
            "logprobs": read_logprobs(body.logprobs, body.top_logprobs),
            "response_format": read_ollama_format(body.format),
            "template_arguments": {} if think is None else {"enable_thinking": think},
        },
        tuple(warnings),
    )


def _drop_unknown_fields(model: type[Any], fields: dict[str, Any]) -> list[str]:
    """Remove the unknown fields, and return a warning for each of the first few.

    What looks like a misspelt field without which the body means something else is left, to be refused.
    """
    known = frozenset({*model.model_fields, *model.noop, *model.ignored})
    options = {*OllamaOptions.model_fields, *OllamaOptions.noop, *OllamaOptions.ignored}
    warnings: list[str] = []
    for name in [name for name in fields if name not in known]:
        near = None if name in options else near_name(name, known)
        if near in _CONTENT and near not in fields:
            continue
        if fields.pop(name) not in (None, "", [], {}) and len(warnings) < _MAX_WARNINGS:
            hint = "; it belongs into `options`" if name in options else f"; did you mean `{near}`?" if near else ""
            warnings.append(f"the field `{printable(name)}` is unknown and has no effect{hint}")
    return warnings


def _drop_unknown(options: dict[str, Any]) -> list[str]:
    """Remove the unknown options, and return a warning for each of the first few."""
    known = frozenset({*OllamaOptions.model_fields, *OllamaOptions.noop, *OllamaOptions.ignored})
    unknown = [name for name, value in options.items() if name not in known and value is not None]
    warnings: list[str] = []
    for name in unknown:
        del options[name]
        if len(warnings) < _MAX_WARNINGS:
            near = near_name(name, known)
            hint = f"; did you mean `{near}`?" if near else ""
            warnings.append(f"the option `{printable(name)}` is unknown and has no effect{hint}")
    return warnings


@renamed(_NAMES)
def _sampling(options: OllamaOptions) -> Sampling:
    given = options.model_dump(exclude_none=True, exclude={"num_ctx", "num_predict", "stop"})
    # In llama.cpp a negative seed means a random one.
    if given.get("seed", 0) < 0:
        del given["seed"]
    if given.get("top_k") == -1:
        given["top_k"] = 0  # off
    return Sampling.of(repetition_penalty=given.pop("repeat_penalty", None), **given)
