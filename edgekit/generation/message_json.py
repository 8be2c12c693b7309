"""Messages and tools as JSON in the OpenAI API's form, as clients send them and a saved chat holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.errors import ConfigError
from edgekit.generation.types import Message, Tool, ToolCall

__all__ = ["message_body", "read_messages", "read_tools", "tool_body"]


def message_body(message: Message) -> dict[str, Any]:
    """Return a message of a request body."""
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        body["name"] = message.name
    return body


def tool_body(tool: Tool) -> dict[str, Any]:
    """Return a tool of a request body."""
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    if tool.parameters is not None:
        function["parameters"] = dict(tool.parameters)
    return {"type": "function", "function": function}


def read_messages(value: object) -> list[Message]:
    """Parse the messages of a saved chat.

    Raises:
        ConfigError: They are not in this form.
    """
    return [_message(item, f"messages[{index}]") for index, item in enumerate(_list(value, "messages"))]


def read_tools(value: object) -> tuple[Tool, ...]:
    """Parse tools: one, or a list of them, with or without the `{"type": "function", "function": …}` around each.

    Raises:
        ConfigError: They are not in this form.
    """
    items = value if isinstance(value, list) else [value]
    return tuple(_tool(item, f"tools[{index}]") for index, item in enumerate(items))


def _message(value: object, at: str) -> Message:
    body = _mapping(value, at)
    role = body.get("role")
    if role not in ("system", "user", "assistant", "tool"):
        raise ConfigError(f"`{at}.role` is not system, user, assistant or tool")
    calls = []
    for index, item in enumerate(_list(body.get("tool_calls") or [], f"{at}.tool_calls")):
        place = f"{at}.tool_calls[{index}]"
        call = _mapping(item, place)
        function = _mapping(call.get("function"), f"{place}.function")
        names = (call.get("id"), function.get("name"), function.get("arguments"))
        calls.append(ToolCall(*(_string(name, place) for name in names)))
    return Message(
        role,
        _string(body.get("content") or "", f"{at}.content"),
        tool_calls=tuple(calls),
        tool_call_id=None if body.get("tool_call_id") is None else str(body["tool_call_id"]),
        name=None if body.get("name") is None else str(body["name"]),
    )


def _tool(value: object, at: str) -> Tool:
    body = _mapping(value, at)
    function = _mapping(body.get("function", body), f"{at}.function")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"`{at}` has no `name`", hint='write it as {"name": …, "description": …, "parameters": {…}}')
    return Tool(
        name,
        _string(function.get("description") or "", f"{at}.description"),
        None if parameters is None else _mapping(parameters, f"{at}.parameters"),
    )


def _mapping(value: object, at: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"`{at}` is not a JSON object")
    return value


def _list(value: object, at: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"`{at}` is not a list")
    return value


def _string(value: object, at: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"`{at}` is not a string")
    return value
