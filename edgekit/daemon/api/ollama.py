"""Parses Ollama's bodies of `/api/chat` and `/api/generate`.

Fields left out have Ollama's defaults, not OpenAI's: its clients expect the same answers. Options that control how
Ollama loads a model are accepted and ignored. A context longer than the daemon's, and unknown options, which Ollama
ignores too, are ignored with a warning.
"""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from edgekit.daemon.api.body import read_logprobs
from edgekit.daemon.api.formats import read_ollama_format
from edgekit.daemon.api.json_body import decode
from edgekit.daemon.api.messages import check_count
from edgekit.daemon.api.tools import read_tools
from edgekit.daemon.api.validation import Integer, Stop, Strict, printable, read, renamed, unsupported
from edgekit.errors import RequestError, nearest
from edgekit.generation.types import ChatRequest, Message, Sampling, ToolCall

__all__ = ["OllamaCall", "parse_ollama_chat", "parse_ollama_generate"]

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
        warnings: What the request asked for and did not get.
    """

    request: ChatRequest | None
    model: str
    stream: bool
    warnings: tuple[str, ...] = ()


def _no_images(value: object) -> object:
    if value:
        raise PydanticCustomError("unsupported", "are not supported; send text")
    return value


class _Options(Strict):
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


class _Function(Strict):
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    index: Integer | None = None


class _Call(Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    function: _Function


class _Message(Strict):
    ignored: ClassVar[frozenset[str]] = frozenset({"cache_control"})

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    # Its names in the OpenAI API: a history may come from there.
    reasoning_content: str | None = None
    reasoning: str | None = None
    images: Annotated[list[Any] | None, BeforeValidator(_no_images)] = None
    tool_calls: list[_Call] | None = None
    tool_name: str | None = None
    # Older clients name a result's tool so; Ollama ignores it elsewhere.
    name: str | None = None
    tool_call_id: str | None = None


class _Body(Strict):
    ignored: ClassVar[frozenset[str]] = frozenset({"keep_alive", "shift"})
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "_debug_render_only": (False,),
        "context": ([],),
        "images": ([],),
        "suffix": ("",),
        "template": ("",),
    }

    model: str
    stream: bool | None = None
    format: Any = None
    options: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Integer | None = None
    truncate: bool | None = None
    think: Any = None


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
    body, shared, warnings = _read(_Chat, data, context_length, thinks=thinks)
    request = None
    if body.messages:
        request = _request(
            id=request_id,
            client=client,
            messages=_messages(body.messages),
            tools=read_tools(body.tools),
            truncation="disabled" if body.truncate is False else "auto",
            **shared,
        )
    return OllamaCall(request, body.model, stream=body.stream is not False, warnings=warnings)


def parse_ollama_generate(
    data: bytes, *, request_id: str, client: str, context_length: int, thinks: bool = False
) -> OllamaCall:
    """Parse a body of `/api/generate`: a chat of one message, or with `raw` a prompt; arguments as above."""
    body, shared, warnings = _read(_Generate, data, context_length, thinks=thinks)
    request = None
    if body.prompt and body.raw:
        if body.system:
            raise RequestError("`system` cannot be combined with `raw`", param="system")
        request = _request(id=request_id, client=client, prompt=body.prompt, **{**shared, "template_arguments": {}})
    elif body.prompt:
        system = (Message("system", body.system),) if body.system else ()
        request = _request(
            id=request_id,
            client=client,
            messages=(*system, Message("user", body.prompt)),
            truncation="disabled" if body.truncate is False else "auto",
            **shared,
        )
    return OllamaCall(request, body.model, stream=body.stream is not False, warnings=warnings)


@renamed(_NAMES)
def _request(**fields: Any) -> ChatRequest:
    return ChatRequest(**fields)


def _read(
    model: type[Any], data: bytes, context_length: int, *, thinks: bool
) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """Return the body, the arguments of `ChatRequest` that both endpoints have in common, and warnings."""
    body = read(model, decode(data))
    think = body.think
    if think is not None and not any(think is known for known in _THINK[thinks]):
        raise unsupported("think")
    given = dict(body.options or {})
    warnings = _drop_unknown(given)
    options = read(_Options, given, at="options")
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


def _drop_unknown(options: dict[str, Any]) -> list[str]:
    """Remove the unknown options, and return a warning for each of the first few."""
    known = {*_Options.model_fields, *_Options.noop, *_Options.ignored}
    unknown = [name for name, value in options.items() if name not in known and value is not None]
    warnings: list[str] = []
    for name in unknown:
        del options[name]
        if len(warnings) < _MAX_WARNINGS:
            near = nearest(name[:100], known)
            hint = f"; did you mean `{near}`?" if near else ""
            warnings.append(f"the option `{printable(name)}` is unknown and has no effect{hint}")
    return warnings


@renamed(_NAMES)
def _sampling(options: _Options) -> Sampling:
    given = options.model_dump(exclude_none=True, exclude={"num_ctx", "num_predict", "stop"})
    # In llama.cpp a negative seed means a random one.
    if given.get("seed", 0) < 0:
        del given["seed"]
    if given.get("top_k") == -1:
        given["top_k"] = 0  # off
    return Sampling.of(repetition_penalty=given.pop("repeat_penalty", None), **given)


def _messages(given: Sequence[_Message]) -> tuple[Message, ...]:
    """Return the messages. A tool result without a call id answers the first open call of its tool."""
    check_count(given)
    messages = []
    open_calls = _OpenCalls()
    for number, message in enumerate(given):
        at = f"messages[{number}]"
        if message.tool_calls and message.role != "assistant":
            raise RequestError(f"`{at}.tool_calls` is only allowed with role `assistant`", param=f"{at}.tool_calls")
        calls = tuple(
            ToolCall(
                call.id or f"call_{number}_{index}",
                call.function.name,
                json.dumps(call.function.arguments, ensure_ascii=False),
            )
            for index, call in enumerate(message.tool_calls or ())
        )
        open_calls.add(calls)
        call_id = message.tool_call_id
        if message.role == "tool":
            call_id = open_calls.answer(message) or call_id
        messages.append(
            Message(
                message.role,
                message.content or "",
                tool_calls=calls,
                tool_call_id=call_id,
                name=_tool_name(message),
                reasoning=message.thinking or message.reasoning_content or message.reasoning or "",
            )
        )
    return tuple(messages)


def _tool_name(message: _Message) -> str | None:
    return message.tool_name or (message.name if message.role == "tool" else None)


class _OpenCalls:
    """Calls without a result, in order, by id and by name: a search for each result would be quadratic."""

    def __init__(self) -> None:
        # A dict finds its first key slowly once many were removed.
        self._calls: OrderedDict[int, ToolCall] = OrderedDict()
        self._added = 0
        self._by_id: defaultdict[str, deque[int]] = defaultdict(deque)
        self._by_name: defaultdict[str, deque[int]] = defaultdict(deque)

    def add(self, calls: Sequence[ToolCall]) -> None:
        for call in calls:
            self._calls[self._added] = call
            self._by_id[call.id].append(self._added)
            self._by_name[call.name].append(self._added)
            self._added += 1

    def answer(self, result: _Message) -> str | None:
        """Close the first call that the result answers, and return its id; None if there is none."""
        if result.tool_call_id is not None:
            number = self._first(self._by_id[result.tool_call_id])
        elif name := _tool_name(result):
            number = self._first(self._by_name[name])
        else:
            number = next(iter(self._calls), None)
        return None if number is None else self._calls.pop(number).id

    def _first(self, numbers: deque[int]) -> int | None:
        while numbers and numbers[0] not in self._calls:
            numbers.popleft()
        return numbers[0] if numbers else None
