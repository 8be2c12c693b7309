"""Parses chat messages in the OpenAI API's format.

Whatever an answer contains may be sent back as history: reasoning, calls that were cut off, null content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from edgekit.daemon.api.call_arguments import repair_arguments
from edgekit.daemon.api.json_body import check_values
from edgekit.daemon.api.open_calls import CallIds, OpenCalls
from edgekit.daemon.api.validation import Strict
from edgekit.errors import RequestError
from edgekit.generation.types import Message, ToolCall

__all__ = ["MAX_MESSAGES", "ChatMessage", "call_arguments", "check_count", "read_messages"]

MAX_MESSAGES = 10_000

_ROLES: Mapping[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    # OpenAI's newer name.
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}

_CONTENT: dict[str, Any] = {
    "anyOf": [
        {"type": ["string", "null"]},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"enum": ["text", "refusal"]}, "text": {"type": "string"}},
                "required": ["type"],
            },
        },
    ]
}


def _text(value: object) -> object:
    """Join a list of text parts; pydantic validates anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        # A part of type `refusal` has its text under that name.
        if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
            if isinstance(kind, str) and kind not in ("text", "refusal"):
                raise PydanticCustomError("unsupported", "of this type is not supported; send text")
            raise PydanticCustomError("content", 'must be a string, or a list of parts with `type` "text" and a `text`')
        texts.append(part[kind])
    return "\n".join(texts)


def _serialized(value: object) -> object:
    """Return arguments that came as an object as the API's string."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else value


class _Function(Strict):
    ignored: ClassVar[frozenset[str]] = frozenset({"parsed_arguments"})

    name: str
    arguments: Annotated[
        str, BeforeValidator(_serialized), WithJsonSchema({"type": ["string", "object"], "description": "JSON"})
    ] = ""


class _Call(Strict):
    ignored: ClassVar[frozenset[str]] = frozenset({"cache_control"})

    # Without one, a result without one answers the first open call of the turn.
    id: str | None = None
    type: Literal["function"] = "function"
    function: _Function
    # Clients that assemble a call from streamed deltas send it back.
    index: int | None = None


class ChatMessage(Strict):
    """One message of a request."""

    # What clients and other servers attach to a message.
    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            "annotations",
            "cache_control",
            "id",
            "parsed",
            "provider_specific_fields",
            "reasoning_details",
            "thinking_blocks",
        }
    )
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {"audio": (), "function_call": ()}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_text), WithJsonSchema(_CONTENT)] = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    # Names of the same: DeepSeek's, which answers here use too, OpenRouter's, Ollama's and Copilot's.
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    reasoning_text: str | None = None


def read_messages(given: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Return the messages.

    Raises:
        RequestError: There are too many; a field is not allowed for its message's role; or a tool result has no call.
    """
    check_count(given)
    called: set[str] = set()
    open_calls = OpenCalls()
    calls_given = (call.id for message in given for call in message.tool_calls or ())
    ids = CallIds([*calls_given, *(message.tool_call_id for message in given)])
    messages = []
    for index, message in enumerate(given):
        at = f"messages[{index}]"
        calls = _calls(message, index, ids)
        called |= {call.id for call in calls}
        open_calls.add(message.role, calls)
        content = message.content or message.refusal or ""
        # An answer may be empty, and so may a tool's result; a question is not.
        if message.content is None and not content and message.role not in ("assistant", "tool"):
            raise RequestError(f"`{at}.content` is missing", param=f"{at}.content")
        # Some clients have no ids, and send null or an empty one.
        call_id = message.tool_call_id or None
        if call_id is not None:
            if message.role != "tool":
                raise RequestError(f"`{at}.tool_call_id` is only allowed with role `tool`", param=f"{at}.tool_call_id")
            if call_id not in called:
                raise RequestError(
                    f"`{at}.tool_call_id` matches no call of an earlier message",
                    hint="also send the assistant's message with its `tool_calls`",
                    param=f"{at}.tool_call_id",
                )
        if message.role == "tool":
            found = open_calls.answer(call_id=call_id, name=message.name)
            # `name` may be something else than the tool's name. A call may have several results.
            call_id = call_id or found or open_calls.answer()
        messages.append(
            Message(
                _ROLES[message.role],
                content,
                tool_calls=calls,
                tool_call_id=call_id,
                name=message.name,
                reasoning=_first(
                    message.reasoning_content, message.reasoning, message.thinking, message.reasoning_text
                ),
            )
        )
    return tuple(messages)


def _first(*texts: str | None) -> str:
    return next(filter(None, texts), "")


def check_count(given: Sequence[Any]) -> None:
    """Refuse more messages than `MAX_MESSAGES`."""
    if len(given) > MAX_MESSAGES:
        raise RequestError(
            f"there are {len(given)} messages; the limit is {MAX_MESSAGES}",
            hint="leave out old ones",
            param="messages",
        )


def call_arguments(text: str, at: str) -> str:
    """Return a call's arguments as a JSON object; an empty string means no arguments.

    Raises:
        RequestError: They are not a JSON object, nor the start of one.
    """
    arguments = repair_arguments(text)
    if arguments is None:
        raise RequestError(f"`{at}` must be a JSON object, as a string", param=at)
    check_values(arguments, at)
    return json.dumps(arguments, ensure_ascii=False)


def _calls(message: ChatMessage, number: int, made: CallIds) -> tuple[ToolCall, ...]:
    if not message.tool_calls:
        return ()
    at = f"messages[{number}]"
    if message.role != "assistant":
        raise RequestError(f"`{at}.tool_calls` is only allowed with role `assistant`", param=f"{at}.tool_calls")
    ids = [made.of(call.id, number, index) for index, call in enumerate(message.tool_calls)]
    if len({*ids}) != len(ids):
        raise RequestError(f"`{at}.tool_calls`: two calls have the same id", param=f"{at}.tool_calls")
    return tuple(
        ToolCall(
            ids[index],
            call.function.name,
            call_arguments(call.function.arguments, f"{at}.tool_calls[{index}].function.arguments"),
        )
        for index, call in enumerate(message.tool_calls)
    )
