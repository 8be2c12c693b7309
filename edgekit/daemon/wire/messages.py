"""The turns of a chat, as the OpenAI API writes them. It knows no model's template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from edgekit.daemon.wire.reading import Strict, json_object
from edgekit.errors import RequestError
from edgekit.generation.request import Message, ToolCall

__all__ = ["ChatMessage", "call_arguments", "read_messages"]

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


class _Function(Strict):
    name: str
    arguments: str


class _Call(Strict):
    id: str
    type: Literal["function"] = "function"
    function: _Function
    # Streamed pieces carry it, and callers put them together and send them back.
    index: int | None = None


class ChatMessage(Strict):
    """One turn, unread."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_text)] = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None


def read_messages(turns: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Return the chat.

    Raises:
        RequestError: A turn that its role does not allow, or an answer to a call that nobody made.
    """
    called: set[str] = set()
    messages = []
    for number, turn in enumerate(turns):
        at = f"messages[{number}]"
        calls = _calls(turn, at)
        called |= {call.id for call in calls}
        if turn.content is None and not calls:
            raise RequestError(f"`{at}.content` is missing", param=f"{at}.content")
        if turn.tool_call_id is not None:
            if turn.role != "tool":
                raise RequestError(f"`{at}.tool_call_id` belongs to role `tool`", param=f"{at}.tool_call_id")
            if turn.tool_call_id not in called:
                raise RequestError(
                    f"`{at}.tool_call_id` answers a call that no message before it makes",
                    hint="send the assistant's message with its `tool_calls` too",
                    param=f"{at}.tool_call_id",
                )
        messages.append(
            Message(
                _ROLES[turn.role],
                turn.content or "",
                tool_calls=calls,
                tool_call_id=turn.tool_call_id,
                name=turn.name,
            )
        )
    return tuple(messages)


def call_arguments(text: str, at: str) -> str:
    """Return a call's arguments as JSON text of an object; nothing at all counts as none.

    Raises:
        RequestError: It is something else.
    """
    if not text.strip():
        return "{}"
    json_object(text, at, "a JSON object, as text")
    return text


def _calls(turn: ChatMessage, at: str) -> tuple[ToolCall, ...]:
    if not turn.tool_calls:
        return ()
    if turn.role != "assistant":
        raise RequestError(f"`{at}.tool_calls` belongs to role `assistant`", param=f"{at}.tool_calls")
    ids = {call.id for call in turn.tool_calls}
    if len(ids) != len(turn.tool_calls):
        raise RequestError(f"`{at}.tool_calls`: two calls have the same id", param=f"{at}.tool_calls")
    return tuple(
        ToolCall(
            call.id,
            call.function.name,
            call_arguments(call.function.arguments, f"{at}.tool_calls[{number}].function.arguments"),
        )
        for number, call in enumerate(turn.tool_calls)
    )
