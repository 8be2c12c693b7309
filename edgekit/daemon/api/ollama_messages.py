"""Parses the messages of Ollama's `/api/chat`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from edgekit.daemon.api.messages import check_count
from edgekit.daemon.api.open_calls import CallIds, OpenCalls
from edgekit.daemon.api.validation import Empty, Integer, Strict
from edgekit.errors import RequestError
from edgekit.generation.types import Message, ToolCall

__all__ = ["OllamaMessage", "no_images", "read_ollama_messages"]


def no_images(value: object) -> object:
    """Refuse images, for pydantic."""
    if value:
        raise PydanticCustomError("unsupported", "are not supported; send text")
    return value


class _Function(Strict):
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    index: Integer | None = None


class _Call(Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    function: _Function


class OllamaMessage(Strict):
    """A message of a body."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    # Its names in the OpenAI API: a history may come from there.
    reasoning_content: str | None = None
    reasoning: str | None = None
    images: Annotated[Empty | None, BeforeValidator(no_images)] = None
    tool_calls: list[_Call] | None = None
    tool_name: str | None = None
    # Older clients name a result's tool so; Ollama ignores it elsewhere.
    name: str | None = None
    tool_call_id: str | None = None


def read_ollama_messages(given: Sequence[OllamaMessage]) -> tuple[Message, ...]:
    """Return the messages. A tool result without a call id answers the first open call of its tool in the turn."""
    check_count(given)
    messages = []
    open_calls = OpenCalls()
    calls_given = (call.id for message in given for call in message.tool_calls or ())
    ids = CallIds([*calls_given, *(message.tool_call_id for message in given)])
    for number, message in enumerate(given):
        at = f"messages[{number}]"
        if message.tool_calls and message.role != "assistant":
            raise RequestError(f"`{at}.tool_calls` is only allowed with role `assistant`", param=f"{at}.tool_calls")
        calls = tuple(
            ToolCall(
                ids.of(call.id, number, index),
                call.function.name,
                json.dumps(call.function.arguments, ensure_ascii=False),
            )
            for index, call in enumerate(message.tool_calls or ())
        )
        open_calls.add(message.role, calls)
        call_id = message.tool_call_id or None
        if message.role == "tool":
            call_id = open_calls.answer(call_id=call_id, name=_tool_name(message)) or call_id
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


def _tool_name(message: OllamaMessage) -> str | None:
    return message.tool_name or (message.name if message.role == "tool" else None)
