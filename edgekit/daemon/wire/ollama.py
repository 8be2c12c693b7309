"""Ollama's bodies of `/api/chat` and `/api/generate`. It knows no transport.

What a body leaves out has Ollama's default, not ours: whoever speaks its dialect expects its answers. Options of how a
model is loaded are accepted and do nothing, but for a context longer than ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from edgekit.daemon.wire.body import read_logprobs, sampling
from edgekit.daemon.wire.formats import read_ollama_format
from edgekit.daemon.wire.reading import Strict, decode, drop, read
from edgekit.daemon.wire.tools import read_tools
from edgekit.errors import RequestError
from edgekit.generation.request import ChatRequest, Message, ToolCall

__all__ = ["OllamaCall", "parse_ollama_chat", "parse_ollama_generate"]

_HARMLESS = ("keep_alive", "shift")
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "context": ([],),
    "images": ([],),
    "suffix": ("",),
    "template": ("",),
}
# Whether a model that reasons should; the names of efforts are for models that are not among ours.
_THINK: Mapping[bool, tuple[object, ...]] = {True: (False, True), False: (False,)}
# How Ollama loads a model; the daemon loaded its own long ago.
_LOADING = (
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
)
_NEUTRAL_OPTIONS: Mapping[str, tuple[object, ...]] = {
    "mirostat": (0,),
    "penalize_newline": (True,),
    "tfs_z": (1,),
}
# Mean something only with `mirostat`, which is refused.
_HARMLESS_OPTIONS = (*_LOADING, "mirostat_eta", "mirostat_tau")


@dataclass(frozen=True, slots=True)
class OllamaCall:
    """What was asked.

    Attributes:
        request: None if nothing was: an empty body loads the model.
        model: The model it names.
        stream: Pieces as they come; Ollama's default.
    """

    request: ChatRequest | None
    model: str
    stream: bool


def _stop(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _no_images(value: object) -> object:
    if value:
        raise PydanticCustomError("unsupported", "are not supported; send text")
    return value


def _whole(value: object) -> object:
    """Ollama takes 64.0 where it means 64; so do callers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int | None, BeforeValidator(_whole)]


class _Options(Strict):
    num_ctx: Whole = None
    num_predict: Whole = None
    seed: Whole = None
    temperature: float | None = None
    top_k: Whole = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Whole = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_stop)] = None


class _Function(Strict):
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    index: int | None = None


class _Call(Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    function: _Function


class _Message(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Annotated[list[Any] | None, BeforeValidator(_no_images)] = None
    tool_calls: list[_Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Body(Strict):
    model: str
    stream: bool | None = None
    format: Any = None
    options: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None


class _Chat(_Body):
    messages: list[_Message] | None = None
    tools: Any = None


class _Generate(_Body):
    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None


def parse_ollama_chat(
    data: bytes, *, request_id: str, client: str, context_length: int, thinks: bool = False
) -> OllamaCall:
    """Read a body of `/api/chat`.

    Args:
        data: The body.
        request_id: Becomes `ChatRequest.id`.
        client: Becomes `ChatRequest.client`.
        context_length: The model's; more cannot be asked for.
        thinks: The model reasons before it answers, and may be asked to.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    body, shared = _read(_Chat, data, context_length, thinks=thinks)
    request = None
    if body.messages:
        request = ChatRequest(
            id=request_id,
            client=client,
            messages=_messages(body.messages),
            tools=read_tools(body.tools),
            truncation="disabled" if body.truncate is False else "auto",
            **shared,
        )
    return OllamaCall(request, body.model, stream=body.stream is not False)


def parse_ollama_generate(
    data: bytes, *, request_id: str, client: str, context_length: int, thinks: bool = False
) -> OllamaCall:
    """Read a body of `/api/generate`: a chat of one question, or with `raw` a text to continue; see above."""
    body, shared = _read(_Generate, data, context_length, thinks=thinks)
    request = None
    if body.prompt and body.raw:
        if body.system:
            raise RequestError("`system` has no place in a `raw` prompt", param="system")
        request = ChatRequest(id=request_id, client=client, prompt=body.prompt, **{**shared, "template_arguments": {}})
    elif body.prompt:
        system = (Message("system", body.system),) if body.system else ()
        request = ChatRequest(
            id=request_id,
            client=client,
            messages=(*system, Message("user", body.prompt)),
            truncation="disabled" if body.truncate is False else "auto",
            **shared,
        )
    return OllamaCall(request, body.model, stream=body.stream is not False)


def _read(model: type[Any], data: bytes, context_length: int, *, thinks: bool) -> tuple[Any, dict[str, Any]]:
    """Return the body, and the arguments of `ChatRequest` that both endpoints share."""
    fields = decode(data)
    think = fields.get("think")
    drop(fields, harmless=_HARMLESS, neutral={**_NEUTRAL, "think": _THINK[thinks]})
    body = read(model, fields, also=[*_NEUTRAL, *_HARMLESS, "think"])
    given = dict(body.options or {})
    drop(given, harmless=_HARMLESS_OPTIONS, neutral=_NEUTRAL_OPTIONS, at="options")
    options = read(_Options, given, at="options", also=[*_NEUTRAL_OPTIONS, *_HARMLESS_OPTIONS])
    if options.num_ctx is not None and options.num_ctx > context_length:
        raise RequestError(
            f"`options.num_ctx` asks for {options.num_ctx} tokens; the context holds {context_length}",
            hint="leave it out",
            param="options.num_ctx",
        )
    most = options.num_predict
    return body, {
        "sampling": _sampling(options),
        # -1 is without end, -2 to the end of the context: both are the context's end here.
        "max_tokens": most if most is not None and most > 0 else None,
        "stop": tuple(options.stop or ()),
        "logprobs": read_logprobs(body.logprobs, body.top_logprobs),
        "response_format": read_ollama_format(body.format),
        "template_arguments": {} if think is None else {"enable_thinking": think},
    }


def _sampling(options: _Options) -> Any:
    ollamas = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repeat_penalty": 1.1, "repeat_last_n": 64}
    given = {**ollamas, **options.model_dump(exclude_none=True, exclude={"num_ctx", "num_predict", "stop"})}
    # A negative seed is llama.cpp's way to ask for none.
    if given.get("seed", 0) < 0:
        del given["seed"]
    return sampling(repetition_penalty=given.pop("repeat_penalty"), **given)


def _messages(turns: Sequence[_Message]) -> tuple[Message, ...]:
    """Ollama's calls need no ids: an answer then belongs to the first call of its tool that has none yet."""
    messages = []
    waiting: list[ToolCall] = []
    for number, turn in enumerate(turns):
        at = f"messages[{number}]"
        if turn.tool_calls and turn.role != "assistant":
            raise RequestError(f"`{at}.tool_calls` belongs to role `assistant`", param=f"{at}.tool_calls")
        calls = tuple(
            ToolCall(
                call.id or f"call_{number}_{place}",
                call.function.name,
                json.dumps(call.function.arguments, ensure_ascii=False),
            )
            for place, call in enumerate(turn.tool_calls or ())
        )
        waiting += calls
        answered = turn.tool_call_id
        if turn.role == "tool":
            called = [call for call in waiting if answered == call.id or (answered is None and _fits(call, turn))]
            if called:
                waiting.remove(called[0])
                answered = called[0].id
        messages.append(
            Message(turn.role, turn.content or "", tool_calls=calls, tool_call_id=answered, name=turn.tool_name)
        )
    return tuple(messages)


def _fits(call: ToolCall, turn: _Message) -> bool:
    return turn.tool_name is None or turn.tool_name == call.name
