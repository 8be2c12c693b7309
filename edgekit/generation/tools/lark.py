"""Pieces of llguidance's Lark that the formats' grammars are made of.

A token is written by its id, because its text would be ordinary characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.generation.grammar.lark import lark_json, lark_text
from edgekit.generation.request import Tool, ToolChoice

__all__ = ["ANY_TEXT", "NEWLINE", "arguments", "call_objects", "callable_tools", "pattern", "text_without", "token"]

ANY_TEXT = "/(?s:.*)/"
NEWLINE = r'"\n"'


def token(tokens: Mapping[str, int], text: str) -> str:
    """Return what matches a marker: its token if it is a special one, else its text."""
    return f"<[{tokens[text]}]>" if text in tokens else lark_text(text)


def pattern(text: str) -> str:
    """Return a regular expression's body, without slashes, that matches exactly this text."""
    return "".join(char if char.isalnum() or char in " _\"'<>=,:" else f"\\x{{{ord(char):x}}}" for char in text)


def text_without(*parts: str) -> str:
    """Return a terminal's body: any text in which none of these texts stands."""
    return " & ".join([ANY_TEXT, *(f"~/(?s:.*){pattern(part)}(?s:.*)/" for part in parts)])


def arguments(tool: Tool) -> str:
    """Return what matches a tool's arguments: a strict tool's schema, or else any JSON object.

    Raises:
        RequestError: The schema asks for what cannot be enforced; the message has its place.
    """
    schema: Mapping[str, Any] = {"type": "object"}
    if tool.parameters is None:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    elif tool.strict:
        schema = tool.parameters
    return lark_json(schema, param="tools", path=f"the parameters of `{tool.name}`: #")


def callable_tools(tools: Sequence[Tool], choice: ToolChoice) -> list[Tool]:
    """Return the tools that the choice leaves to call."""
    return [tool for tool in tools if choice.name is None or tool.name == choice.name]


def call_objects(tools: Sequence[Tool], key: str) -> str:
    """Return what matches a call's object up to its closing brace: a tool's name, then its arguments under `key`."""
    heads = ((f'{{"name": "{tool.name}", "{key}": ', tool) for tool in tools)
    return " | ".join(f"{lark_text(head)} {arguments(tool)}" for head, tool in heads)
