"""Parses bodies of Anthropic's Messages API into the one `ChatRequest`.

What coding agents send besides is accepted where it asks for nothing here: cache breakpoints, betas, user ids, context
management. Images, documents and tools that Anthropic's servers run are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from edgekit.daemon.api.chat import Effort
from edgekit.daemon.api.formats import read_schema_format
from edgekit.daemon.api.json_body import check_values, decode
from edgekit.daemon.api.messages import MAX_MESSAGES
from edgekit.daemon.api.tools import check_tool_name
from edgekit.daemon.api.validation import Integer, Stop, Strict, read, renamed, unsupported
from edgekit.errors import RequestError
from edgekit.generation.types import ChatRequest, Message, Sampling, Tool, ToolCall, ToolChoice

__all__ = ["AnthropicCall", "parse_anthropic"]

_NAMES: Mapping[str, str] = {"stop": "stop_sequences"}
_DECORATION = frozenset({"cache_control", "citations"})


class _Thinking(Strict):
    ignored: ClassVar[frozenset[str]] = frozenset({"budget_tokens", "display"})

    type: Literal["enabled", "disabled", "adaptive"]


class _OutputConfig(Strict):
    ignored: ClassVar[frozenset[str]] = frozenset({"task_budget"})

    effort: Effort | None = None
    format: Any = None


class _ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Tool(Strict):
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"allowed_callers", "cache_control", "defer_loading", "eager_input_streaming", "input_examples"}
    )

    type: str = "custom"
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class _Message(Strict):
    ignored: ClassVar[frozenset[str]] = _DECORATION

    role: Literal["user", "assistant", "system"]
    content: Any


class _Body(Strict):
    # How Anthropic's servers compute the answer, and what they keep of it.
    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            "betas",
            "cache_control",
            "context_management",
            "diagnostics",
            "inference_geo",
            "metadata",
            "service_tier",
            "speed",
        }
    )
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {"container": (), "fallbacks": ([],), "mcp_servers": ([],)}

    model: str
    messages: list[_Message]
    max_tokens: Integer | None = None
    system: Any = None
    stop_sequences: Stop | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Integer | None = None
    tools: Any = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: Any = None


@dataclass(frozen=True, slots=True)
class AnthropicCall:
    """A parsed body.

    Attributes:
        request: The request.
        model: The model's name.
        stream: Stream the reply.
    """

    request: ChatRequest
    model: str
    stream: bool


def parse_anthropic(data: bytes, *, request_id: str, client: str, counting: bool = False) -> AnthropicCall:
    """Parse a body of `/v1/messages`.

    Args:
        data: The body.
        request_id: Becomes `ChatRequest.id`.
        client: Becomes `ChatRequest.client`.
        counting: It is a body of `/v1/messages/count_tokens`, which needs no `max_tokens`.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    body = read(_Body, decode(data))
    if body.max_tokens is None and not counting:
        raise RequestError("`max_tokens` is missing", param="max_tokens")
    messages = _messages(body)
    choice = body.tool_choice or _ToolChoice(type="auto")
    if choice.type == "tool" and choice.name is None:
        raise RequestError("`tool_choice.name` is missing", param="tool_choice.name")
    config = body.output_config or _OutputConfig()
    thinks = body.thinking is not None and body.thinking.type != "disabled"
    variables: dict[str, Any] = {"enable_thinking": thinks}
    if config.effort is not None:
        variables["reasoning_effort"] = config.effort
    modes: Mapping[str, Literal["auto", "none", "required"]] = {"any": "required", "tool": "required", "none": "none"}
    with renamed(_NAMES):
        request = ChatRequest(
            id=request_id,
            client=client,
            messages=messages,
            max_tokens=body.max_tokens,
            stop=tuple(body.stop_sequences or ()),
            sampling=Sampling.of(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k),
            tools=_tools(body.tools),
            tool_choice=ToolChoice(modes.get(choice.type, "auto"), choice.name if choice.type == "tool" else None),
            parallel_tool_calls=not choice.disable_parallel_tool_use,
            response_format=_format(config.format, body.output_format),
            template_arguments=variables,
            # As there: a last message of the assistant is the beginning of the answer.
            turn="continue" if messages[-1].role == "assistant" else "new",
        )
    return AnthropicCall(request, body.model, stream=bool(body.stream))


def _format(given: object, older: object) -> Any:
    if given is not None and older is not None:
        raise RequestError("`output_format` and `output_config.format` both set the format", param="output_format")
    if given is not None:
        return read_schema_format(given, "output_config.format")
    return None if older is None else read_schema_format(older, "output_format")


def _tools(given: object) -> tuple[Tool, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise RequestError("`tools` must be a list", param="tools")
    tools = []
    for number, item in enumerate(given):
        at = f"tools[{number}]"
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind not in (None, "custom"):
            raise unsupported(
                f"{at}.type",
                hint="only tools with an `input_schema` are supported, which the client runs",
                what="of this type is not supported",
            )
        tool = read(_Tool, item, at=at)
        check_tool_name(tool.name, f"{at}.name")
        tools.append(
            Tool(
                tool.name,
                description=tool.description or "",
                parameters=tool.input_schema,
                strict=bool(tool.strict),
                param=f"{at}.input_schema",
            )
        )
    return tuple(tools)


def _messages(body: _Body) -> tuple[Message, ...]:
    if len(body.messages) > MAX_MESSAGES:
        raise RequestError(
            f"there are {len(body.messages)} messages; the limit is {MAX_MESSAGES}",
            hint="leave out old ones",
            param="messages",
        )
    messages = []
    if body.system not in (None, "", []):
        texts = [block["text"] for block in _blocks(body.system, "system", ("text",))]
        messages.append(Message("system", "\n\n".join(texts)))
    called: set[str] = set()
    for number, message in enumerate(body.messages):
        at = f"messages[{number}].content"
        if message.role == "assistant":
            messages.append(_assistant(message.content, at, called))
        elif message.role == "system":
            texts = [block["text"] for block in _blocks(message.content, at, ("text",))]
            messages.append(Message("system", "\n\n".join(texts)))
        else:
            messages += _user(message.content, at, called)
    if not any(message.role != "system" for message in messages):
        raise RequestError("`messages` must not be empty", param="messages")
    return tuple(messages)


def _user(content: object, at: str, called: set[str]) -> list[Message]:
    """Return a user's content as messages: one for each tool result, and one for the text between them."""
    messages: list[Message] = []
    texts: list[str] = []

    def end_text() -> None:
        if texts:
            messages.append(Message("user", "\n\n".join(texts)))
            texts.clear()

    for number, block in enumerate(_blocks(content, at, ("text", "tool_result"))):
        if block["type"] == "text":
            texts.append(block["text"])
            continue
        end_text()
        call_id = block.get("tool_use_id")
        if not isinstance(call_id, str) or call_id not in called:
            raise RequestError(
                f"`{at}[{number}].tool_use_id` matches no `tool_use` of an earlier message",
                hint="also send the assistant's message with its `tool_use` blocks",
                param=f"{at}[{number}].tool_use_id",
            )
        given = block.get("content")
        parts = [] if given in (None, "", []) else _blocks(given, f"{at}[{number}].content", ("text",))
        messages.append(Message("tool", "\n".join(part["text"] for part in parts), tool_call_id=call_id))
    end_text()
    # An empty question is one too.
    return messages or [Message("user", "")]


def _assistant(content: object, at: str, called: set[str]) -> Message:
    texts, thoughts, calls = [], [], []
    known = ("text", "thinking", "redacted_thinking", "tool_use")
    for number, block in enumerate(_blocks(content, at, known)):
        where = f"{at}[{number}]"
        if block["type"] == "text":
            texts.append(block["text"])
        elif block["type"] == "thinking":
            thoughts.append(_string(block, "thinking", where))
        elif block["type"] == "tool_use":
            call_id, name, given = _string(block, "id", where), _string(block, "name", where), block.get("input")
            if not isinstance(given, dict):
                raise RequestError(f"`{where}.input` must be an object", param=f"{where}.input")
            check_values(given, f"{where}.input")
            calls.append(ToolCall(call_id, name, json.dumps(given, ensure_ascii=False)))
            called.add(call_id)
    return Message("assistant", "\n\n".join(texts), tool_calls=tuple(calls), reasoning="\n\n".join(thoughts))


def _blocks(given: object, at: str, known: Sequence[str]) -> list[dict[str, Any]]:
    """Return content as a list of blocks of known types; a string is one of text.

    Raises:
        RequestError: A block is of another type, or a text block has no text.
    """
    if isinstance(given, str):
        return [{"type": "text", "text": given}]
    if not isinstance(given, list):
        raise RequestError(f"`{at}` must be a string or a list of blocks", param=at)
    for number, block in enumerate(given):
        where = f"{at}[{number}]"
        kind = block.get("type") if isinstance(block, Mapping) else None
        if not isinstance(kind, str):
            raise RequestError(f"`{where}` must be an object with a `type`", param=where)
        if kind not in known:
            raise unsupported(f"{where}.type", hint="send text", what="of this type is not supported here")
        if kind == "text":
            _string(block, "text", where)
    return given


def _string(block: Mapping[str, Any], name: str, at: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise RequestError(f"`{at}.{name}` must be a string", param=f"{at}.{name}")
    return value
