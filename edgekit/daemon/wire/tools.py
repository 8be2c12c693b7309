"""Tools and whether they are to be called, as the OpenAI API writes them. It knows no model's way to call them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from edgekit.daemon.wire.reading import Strict, printable, read, unsupported
from edgekit.errors import RequestError
from edgekit.generation.request import Tool, ToolChoice

__all__ = ["read_tool_choice", "read_tools"]

# The OpenAI API allows letters, digits, _ and -; names of MCP servers' tools hold the others too.
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


class _Function(Strict):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Named(Strict):
    name: str


class _Choice(Strict):
    type: str
    function: _Named


class _Allowed(Strict):
    mode: Literal["auto", "required"]
    tools: list[_Choice]


class _AllowedTools(Strict):
    type: str
    allowed_tools: _Allowed


def read_tools(given: object) -> tuple[Tool, ...]:
    """Return the tools.

    Raises:
        RequestError: With the path of what is wrong.
    """
    if given is None:
        return ()
    if not isinstance(given, list):
        raise RequestError("`tools` must be a list", param="tools")
    return tuple(_tool(item, f"tools[{number}]") for number, item in enumerate(given))


def read_tool_choice(given: object, tools: Sequence[Tool]) -> tuple[ToolChoice, tuple[Tool, ...]]:
    """Return the choice, and the tools that it leaves to choose from.

    `allowed_tools` names some of the tools; the others are as good as not there.

    Raises:
        RequestError: No such choice, or it names a tool that is not there.
    """
    if given is None:
        return ToolChoice(), tuple(tools)
    if given in ("none", "auto", "required"):
        mode: Literal["none", "auto", "required"] = given
        return ToolChoice(mode), tuple(tools)
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "function":
        name = read(_Choice, given, at="tool_choice").function.name
        _check_known([name], tools)
        return ToolChoice("required", name), tuple(tools)
    if kind == "allowed_tools":
        allowed = read(_AllowedTools, given, at="tool_choice").allowed_tools
        names = [item.function.name for item in allowed.tools]
        _check_known(names, tools)
        return ToolChoice(allowed.mode), tuple(tool for tool in tools if tool.name in names)
    if isinstance(kind, str):
        raise unsupported(
            "tool_choice.type", hint="it may be `function` or `allowed_tools`", what="of this type is not supported"
        )
    raise RequestError(
        '`tool_choice` must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}',
        param="tool_choice",
    )


def _tool(item: object, at: str) -> Tool:
    if not isinstance(item, Mapping):
        raise RequestError(f"`{at}` must be an object", param=at)
    fields = dict(item)
    if fields.pop("type", "function") != "function":
        raise unsupported(f"{at}.type", hint="only `function` tools are", what="of this type is not supported")
    if "function" not in fields:
        raise RequestError(f"`{at}.function` is missing", param=f"{at}.function")
    function = read(_Function, fields.pop("function"), at=f"{at}.function")
    for name in fields:
        raise unsupported(f"{at}.{printable(name)}")
    if not _NAME.fullmatch(function.name):
        raise RequestError(
            f"`{at}.function.name` must have 1 to 128 letters, digits or _ . : / -", param=f"{at}.function.name"
        )
    return Tool(
        function.name,
        description=function.description or "",
        parameters=function.parameters,
        strict=bool(function.strict),
    )


def _check_known(names: Sequence[str], tools: Sequence[Tool]) -> None:
    known = {tool.name for tool in tools}
    for name in names:
        if name not in known:
            raise RequestError(
                f"`tool_choice` names the tool `{printable(name)}`, which is not among `tools`", param="tool_choice"
            )
