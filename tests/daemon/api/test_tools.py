from __future__ import annotations

from typing import Any

import pytest

from edgekit.daemon.api import parse_chat
from edgekit.daemon.api.ignored import collect_ignored
from edgekit.errors import RequestError
from edgekit.generation.tools.lark import arguments
from edgekit.generation.types import ChatRequest, Tool, ToolChoice

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of now.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time", "strict": True}}


def parse(**fields: Any) -> ChatRequest:
    return parse_chat({"messages": HELLO, "tools": [WEATHER, TIME], **fields}, request_id="r")[0]


def test_a_strict_schema_that_cannot_be_enforced_is_refused_by_its_path_in_the_request() -> None:
    broken = {**WEATHER["function"], "name": "b", "parameters": {**SCHEMA, "contains": {}}, "strict": True}  # type: ignore[dict-item]
    empty = {"name": "c", "parameters": {"enum": []}, "strict": True}
    never = {"name": "d", "parameters": {"anyOf": [{"$ref": "#"}]}, "strict": True}
    given = [WEATHER, *({"type": "function", "function": function} for function in (broken, empty, never))]
    tools = parse(tools=given, tool_choice={"type": "function", "function": {"name": "b"}}).tools
    for tool, path in zip(
        tools[1:],
        ("[1].function.parameters.contains", "[2].function.parameters.enum", "[3].function.parameters"),
        strict=True,
    ):
        with pytest.raises(RequestError) as caught:
            arguments(tool)
        assert caught.value.message.startswith(f"`tools{path}`: ")
        assert caught.value.param == tool.param


def test_tools_arrive_in_order() -> None:
    assert parse().tools == (Tool("weather", "Of now.", SCHEMA), Tool("time", strict=True))


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        (None, ToolChoice("auto")),
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "function": {"name": "time"}}, ToolChoice("required", "time")),
    ],
)
def test_every_tool_choice_is_parsed(given: object, choice: ToolChoice) -> None:
    request = parse(tool_choice=given)
    assert request.tool_choice == choice
    assert len(request.tools) == 2


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_drop_the_others(mode: str) -> None:
    allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "time"}}]}
    request = parse(tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert [tool.name for tool in request.tools] == ["time"]
    assert request.tool_choice == ToolChoice(mode)  # type: ignore[arg-type]  # one of two literals


def test_tools_that_openais_servers_run_are_ignored_and_named() -> None:
    given = [{"type": "web_search"}, TIME, {"type": "custom", "custom": {"name": "x"}}]
    with collect_ignored() as ignored:
        request = parse_chat({"messages": HELLO, "tools": given}, request_id="r")[0]
    assert ([tool.name for tool in request.tools], ignored) == (["time"], ["tools[0]", "tools[2]"])


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tools": {}}, "invalid_request", "tools"),
        ({"tools": [1]}, "invalid_request", "tools[0]"),
        ({"tools": [{}]}, "invalid_request", "tools[0].function"),
        ({"tools": [{"function": {}}]}, "invalid_request", "tools[0].function.name"),
        ({"tools": [{"function": {"name": "a b"}}]}, "invalid_request", "tools[0].function.name"),
        (
            {"tools": [{"function": {"name": "f", "parameters": [1]}}]},
            "invalid_request",
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"function": {"name": "f", "paramters": {}}}]},
            "unsupported_parameter",
            "tools[0].function.paramters",
        ),
        ({"tools": [{"type": "function", "functions": {}}]}, "unsupported_parameter", "tools[0].functions"),
        ({"tools": [TIME, TIME]}, "invalid_request", "tools"),
        ({"tool_choice": "maybe"}, "invalid_request", "tool_choice"),
        ({"tool_choice": 5}, "invalid_request", "tool_choice"),
        ({"tool_choice": {"type": "custom"}}, "unsupported_parameter", "tool_choice.type"),
        ({"tool_choice": {"type": "function"}}, "invalid_request", "tool_choice.function"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "invalid_request", "tool_choice"),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "x"}}]},
                }
            },
            "invalid_request",
            "tool_choice",
        ),
        ({"tools": [], "tool_choice": "required"}, "invalid_request", "tool_choice"),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "invalid_request",
            "response_format",
        ),
    ],
)
def test_invalid_tools_are_named_by_their_path(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)
