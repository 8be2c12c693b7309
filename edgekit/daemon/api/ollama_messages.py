"""Parses the messages of Ollama's `/api/chat`."""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from edgekit.daemon.api.messages import check_count
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


def _tool_name(message: OllamaMessage) -> str | None:
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

    def answer(self, result: OllamaMessage) -> str | None:
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
