"""Parses bodies of Anthropic's Messages API into the one `ChatRequest`.

What coding agents send besides is accepted where it asks for nothing here: cache breakpoints, betas, user ids, context
management, tools that Anthropic's servers run, and what those returned. Images and documents are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import SkipValidation

from edgekit.daemon.api.anthropic_blocks import (
    ANSWER_BLOCKS,
    Block,
    TextBlockParam,
    ThinkingBlockParam,
    ToolReferenceBlockParam,
    ToolResultBlockParam,
    ToolUseBlockParam,
    read_blocks,
)
from edgekit.daemon.api.formats import FlatSchemaFormat, read_schema_format
from edgekit.daemon.api.ignored import ignore
from edgekit.daemon.api.json_body import check_values, decode
from edgekit.daemon.api.messages import MAX_MESSAGES
from edgekit.daemon.api.reasoning import Effort, Thinking
from edgekit.daemon.api.tools import check_tool_name
from edgekit.daemon.api.validation import Integer, Stop, Strict, read, renamed
from edgekit.errors import RequestError
from edgekit.generation.types import ChatRequest, Message, Sampling, Tool, ToolCall, ToolChoice

__all__ = ["AnthropicCall", "MessagesBody", "parse_anthropic"]

_NAMES: Mapping[str, str] = {"stop": "stop_sequences"}


class _OutputConfig(Strict):
    ignored: ClassVar[frozenset[str]] = frozenset({"task_budget"})

    effort: Effort | None = None
    # `read_schema_format` reads it, and `output_format`.
    format: SkipValidation[FlatSchemaFormat | None] = None


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
    ignored: ClassVar[frozenset[str]] = frozenset({"cache_control", "citations"})

    role: Literal["user", "assistant", "system"]
    # `read_blocks` reads it.
    content: SkipValidation[str | list[Block]]


class MessagesBody(Strict):
    """A body of `/v1/messages`."""

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
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "container": (),
        "fallbacks": ([],),
        "mcp_servers": ([],),
        # Of OpenAI's API.
        "max_completion_tokens": (),
        "response_format": ({"type": "text"},),
        "stop": ([], ""),
    }
    instead: ClassVar[Mapping[str, str]] = {
        "max_completion_tokens": "use `max_tokens`",
        "response_format": "use `output_config.format`",
        "stop": "use `stop_sequences`",
    }

    model: str
    messages: list[_Message]
    max_tokens: Integer | None = None
    # `read_blocks` reads it.
    system: SkipValidation[str | list[TextBlockParam] | None] = None
    stop_sequences: Stop | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Integer | None = None
    # `_tools` reads them: its errors are clearer.
    tools: SkipValidation[list[_Tool] | None] = None
    tool_choice: _ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: SkipValidation[FlatSchemaFormat | None] = None


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
    body = read(MessagesBody, decode(data))
    if body.max_tokens is None and not counting:
        raise RequestError("`max_tokens` is missing", param="max_tokens")
    messages = _messages(body)
    choice = body.tool_choice or _ToolChoice(type="auto")
    if choice.type == "tool" and choice.name is None:
        raise RequestError("`tool_choice.name` is missing", param="tool_choice.name")
    config = body.output_config or _OutputConfig()
    thinks = body.thinking is not None and body.thinking.on is not False
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
        if kind == "function":
            raise RequestError(f"`{at}` is a tool of OpenAI's API", hint="send `name` and `input_schema`", param=at)
        if isinstance(kind, str) and kind != "custom":
            # Coding agents list tools that Anthropic's servers run, such as web search.
            ignore(at)
            continue
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


def _messages(body: MessagesBody) -> tuple[Message, ...]:
    if len(body.messages) > MAX_MESSAGES:
        raise RequestError(
            f"there are {len(body.messages)} messages; the limit is {MAX_MESSAGES}",
            hint="leave out old ones",
            param="messages",
        )
    messages = []
    if body.system not in (None, "", []):
        messages.append(_system(body.system, "system"))
    called: set[str] = set()
    for number, message in enumerate(body.messages):
        at = f"messages[{number}].content"
        if message.role == "assistant":
            messages.append(_assistant(message.content, at, called))
        elif message.role == "system":
            messages.append(_system(message.content, at))
        else:
            messages += _user(message.content, at, called)
    if not any(message.role != "system" for message in messages):
        raise RequestError("`messages` must not be empty", param="messages")
    return tuple(messages)


def _system(content: object, at: str) -> Message:
    return Message("system", "\n\n".join(block.text for block in read_blocks(content, at, (TextBlockParam,))))


def _user(content: object, at: str, called: set[str]) -> list[Message]:
    """Return a user's content as messages: one for each tool result, and one for the text between them."""
    messages: list[Message] = []
    texts: list[str] = []

    def end_text() -> None:
        if texts:
            messages.append(Message("user", "\n\n".join(texts)))
            texts.clear()

    for number, block in enumerate(read_blocks(content, at, (TextBlockParam, ToolResultBlockParam))):
        if isinstance(block, TextBlockParam):
            texts.append(block.text)
        elif isinstance(block, ToolResultBlockParam):
            end_text()
            if block.tool_use_id not in called:
                raise RequestError(
                    f"`{at}[{number}].tool_use_id` matches no `tool_use` of an earlier message",
                    hint="also send the assistant's message with its `tool_use` blocks",
                    param=f"{at}[{number}].tool_use_id",
                )
            result = _result_text(block.content, f"{at}[{number}].content")
            messages.append(Message("tool", result, tool_call_id=block.tool_use_id))
    end_text()
    # An empty question is one too.
    return messages or [Message("user", "")]


def _result_text(given: object, at: str) -> str:
    """Return a tool's result as text; a tool that a search has found is its name."""
    if given in (None, "", []):
        return ""
    known: tuple[type[TextBlockParam | ToolReferenceBlockParam], ...] = (TextBlockParam, ToolReferenceBlockParam)
    blocks = read_blocks(given, at, known)
    return "\n".join(block.text if isinstance(block, TextBlockParam) else block.tool_name for block in blocks)


def _assistant(content: object, at: str, called: set[str]) -> Message:
    texts, thoughts, calls = [], [], []
    for number, block in enumerate(read_blocks(content, at, ANSWER_BLOCKS)):
        if isinstance(block, TextBlockParam):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlockParam):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlockParam):
            check_values(block.input, f"{at}[{number}].input")
            calls.append(ToolCall(block.id, block.name, json.dumps(block.input, ensure_ascii=False)))
            called.add(block.id)
    return Message("assistant", "\n\n".join(texts), tool_calls=tuple(calls), reasoning="\n\n".join(thoughts))
