"""Building blocks of the formats' grammars, in llguidance's Lark syntax.

A special token is written by its id, because its text would match ordinary characters.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.errors import RequestError
from edgekit.generation.grammar.lark import lark_json, lark_text
from edgekit.generation.types import Tool, ToolChoice

__all__ = [
    "ANY_OBJECT",
    "ANY_TEXT",
    "NEWLINE",
    "arguments",
    "call_objects",
    "callable_tools",
    "pattern",
    "text_without",
    "token",
]

MAX_CHECKED = 1024
"""Schemas that are remembered as enforceable, by their hashes: a client sends the same tools again and again."""

ANY_TEXT = "/(?s:.*)/"
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
NEWLINE = r'"\n"'

_lock = threading.Lock()
# The least recently used first.
_enforceable: OrderedDict[bytes, None] = OrderedDict()


def token(tokens: Mapping[str, int], text: str) -> str:
    """Return an expression that matches a marker: its token if it is a special token, else its text."""
    return f"<[{tokens[text]}]>" if text in tokens else lark_text(text)


def pattern(text: str) -> str:
    """Return a regular expression, without slashes, that matches exactly this text."""
    return "".join(char if char.isalnum() or char in " _\"'<>=,:" else f"\\x{{{ord(char):x}}}" for char in text)


def text_without(*parts: str) -> str:
    """Return a terminal's body: any text that contains none of these strings."""
    return " & ".join([ANY_TEXT, *(f"~/(?s:.*){pattern(part)}(?s:.*)/" for part in parts)])


def arguments(tool: Tool) -> str:
    """Return an expression for a tool's arguments: an object of its schema.

    Where the schema cannot be enforced, a tool that is not strict takes any object.

    Raises:
        RequestError: A strict tool's schema cannot be enforced; the message contains the path.
    """
    if tool.parameters is None:
        return lark_json(
            {"type": "object", "properties": {}, "additionalProperties": False}, param=tool.param, path=tool.param
        )
    # Many schemas leave out the type, as arguments are an object anyway.
    schema: Mapping[str, Any] = {"type": "object"} | dict(tool.parameters)
    if schema["type"] != "object" and not tool.strict:
        schema = ANY_OBJECT
    try:
        return _checked(schema, tool.param)
    except RequestError:
        if tool.strict:
            raise
        return lark_json(ANY_OBJECT, param=tool.param, path=tool.param)


def _checked(schema: Mapping[str, Any], param: str) -> str:
    """As `lark_json`, but a schema is only checked if it is not among those of the last requests."""
    text = json.dumps(schema)
    digest = hashlib.sha256(text.encode()).digest()
    with _lock:
        if digest in _enforceable:
            _enforceable.move_to_end(digest)
            return f"%json {text}"
    checked = lark_json(schema, param=param, path=param)
    with _lock:
        _enforceable[digest] = None
        if len(_enforceable) > MAX_CHECKED:
            _enforceable.popitem(last=False)
    return checked


def callable_tools(tools: Sequence[Tool], choice: ToolChoice) -> list[Tool]:
    """Return the tools that the choice allows."""
    return [tool for tool in tools if choice.name is None or tool.name == choice.name]


def call_objects(tools: Sequence[Tool], key: str) -> str:
    """Return an expression for a call object up to its closing brace; the arguments are at `key`."""
    heads = ((f'{{"name": "{tool.name}", "{key}": ', tool) for tool in tools)
    return " | ".join(f"{lark_text(head)} {arguments(tool)}" for head, tool in heads)
