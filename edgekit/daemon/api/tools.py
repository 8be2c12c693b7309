"""Parses `tools` and `tool_choice` in the OpenAI API's format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from edgekit.daemon.api.ignored import ignore
from edgekit.daemon.api.validation import Strict, read, unsupported
from edgekit.errors import RequestError
from edgekit.generation.types import Tool, ToolChoice, check_tool_names

__all__ = ["Choice", "FlatChoice", "FlatTool", "FunctionTool", "check_tool_name", "read_tool_choice", "read_tools"]

# The OpenAI API allows letters, digits, _ and -; tool names of MCP servers contain the others too.
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


class _Function(Strict):
    ignored: ClassVar[frozenset[str]] = frozenset({"cache_control"})

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatTool(_Function):
    """As in the Responses API."""

    ignored: ClassVar[frozenset[str]] = frozenset({"allowed_callers", "cache_control", "output_schema"})
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {"defer_loading": (False,)}

    type: Literal["function"]


class FunctionTool(Strict):
    """A tool of a chat."""

    ignored: ClassVar[frozenset[str]] = frozenset({"cache_control"})

    type: Literal["function"] = "function"
    function: _Function


class _Named(Strict):
    name: str


class NamedTool(Strict):
    """A tool that must be called."""

    type: Literal["function"]
    function: _Named


class FlatNamedTool(Strict):
    """The same, in the Responses API."""

    type: Literal["function"]
    name: str


class _Allowed(Strict):
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedTools(Strict):
    """The tools that may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: _Allowed


class FlatAllowedTools(Strict):
    """The same, in the Responses API."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FlatNamedTool]


_Mode = Literal["none", "auto", "required"]
Choice = _Mode | NamedTool | AllowedTools
"""`tool_choice`."""

FlatChoice = _Mode | FlatNamedTool | FlatAllowedTools
"""`tool_choice` of the Responses API."""


def read_tools(given: object, *, flat: bool = False) -> tuple[Tool, ...]:
    """Return the tools that the client runs; others, which OpenAI's servers would run, are ignored.

    Args:
        given: The list.
        flat: A function's fields are beside its `type`, as in the Responses API, and not in `function`.

    Raises:
        RequestError: A tool is invalid; `param` is its path.
    """
    if given is None:
        return ()
    if not isinstance(given, list):
        raise RequestError("`tools` must be a list", param="tools")
    tools = (_tool(item, f"tools[{number}]", flat=flat) for number, item in enumerate(given))
    return tuple(tool for tool in tools if tool is not None)


def read_tool_choice(
    given: object, tools: Sequence[Tool], *, flat: bool = False
) -> tuple[ToolChoice, tuple[Tool, ...]]:
    """Return the choice, and the tools that it allows.

    `allowed_tools` names a subset of the tools; the others are dropped.

    Args:
        given: The choice.
        tools: The tools.
        flat: Fields are beside the `type`, as in the Responses API.

    Raises:
        RequestError: The choice is invalid, or `allowed_tools` names an unknown tool.
    """
    if given is None:
        return ToolChoice(), tuple(tools)
    if given in ("none", "auto", "required"):
        mode: Literal["none", "auto", "required"] = given
        return ToolChoice(mode), tuple(tools)
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "function":
        if flat:
            name = read(FlatNamedTool, given, at="tool_choice").name
        else:
            name = read(NamedTool, given, at="tool_choice").function.name
        return ToolChoice("required", name), tuple(tools)
    if kind == "allowed_tools":
        mode, names = _allowed(given, flat=flat)
        check_tool_names(names, tools)
        return ToolChoice(mode), tuple(tool for tool in tools if tool.name in names)
    if isinstance(kind, str):
        raise unsupported(
            "tool_choice.type", hint="supported: `function`, `allowed_tools`", what="of this type is not supported"
        )
    raise RequestError(
        '`tool_choice` must be "none", "auto", "required" or '
        + ('{"type": "function", "name": …}' if flat else '{"type": "function", "function": {"name": …}}'),
        param="tool_choice",
    )


def _allowed(given: object, *, flat: bool) -> tuple[Literal["auto", "required"], list[str]]:
    if flat:
        choice = read(FlatAllowedTools, given, at="tool_choice")
        return choice.mode, [item.name for item in choice.tools]
    allowed = read(AllowedTools, given, at="tool_choice").allowed_tools
    return allowed.mode, [item.function.name for item in allowed.tools]


def _tool(item: object, at: str, *, flat: bool = False) -> Tool | None:
    if not isinstance(item, Mapping):
        raise RequestError(f"`{at}` must be an object", param=at)
    kind = item.get("type")
    if isinstance(kind, str) and kind != "function":
        # Coding agents list their server's tools, such as web search, whatever server they speak to.
        ignore(at)
        return None
    function: _Function = read(FlatTool, item, at=at) if flat else read(FunctionTool, item, at=at).function
    at = at if flat else f"{at}.function"
    check_tool_name(function.name, f"{at}.name")
    return Tool(
        function.name,
        description=function.description or "",
        parameters=function.parameters,
        strict=bool(function.strict),
        param=f"{at}.parameters",
    )


def check_tool_name(name: str, at: str) -> None:
    """Refuse a tool's name that is too long, or has other characters than names of tools have."""
    if not _NAME.fullmatch(name):
        raise RequestError(f"`{at}` must have 1 to 128 letters, digits or _ . : / -", param=at)
