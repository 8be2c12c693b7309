"""Messages and tools as JSON: what is written is read again, and what is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.errors import ConfigError
from edgekit.generation.message_json import message_body, read_messages, read_tools, tool_body
from edgekit.generation.types import Message, Tool, ToolCall

MESSAGES = [
    Message("system", "Be brief."),
    Message("user", "Hi", name="ada"),
    Message("assistant", "", tool_calls=(ToolCall("c1", "now", "{}"), ToolCall("c2", "find", '{"x": 1}'))),
    Message("tool", "12:00", tool_call_id="c1", name="now"),
]
TOOLS = (Tool("now"), Tool("find", "Finds.", {"type": "object"}))


def test_what_is_written_is_read_again() -> None:
    assert read_messages([message_body(message) for message in MESSAGES]) == MESSAGES
    assert read_tools([tool_body(tool) for tool in TOOLS]) == TOOLS


def test_only_the_fields_that_are_set_are_written() -> None:
    assert message_body(MESSAGES[0]) == {"role": "system", "content": "Be brief."}
    assert tool_body(Tool("now")) == {"type": "function", "function": {"name": "now", "description": ""}}


def test_a_tool_may_come_alone_and_without_the_object_around_it() -> None:
    assert read_tools({"name": "now"}) == (Tool("now"),)
    assert read_tools([{"name": "now", "description": None}, tool_body(TOOLS[1])]) == TOOLS


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("hi", "`messages` is not a list"),
        ({}, "`messages` is not a list"),
        (["hi"], r"`messages\[0\]` is not a JSON object"),
        ([{"role": "developer", "content": ""}], r"`messages\[0\]\.role`"),
        ([{"role": "user", "content": 5}], r"`messages\[0\]\.content` is not a string"),
        ([{"role": "assistant", "tool_calls": [5]}], r"`messages\[0\]\.tool_calls\[0\]` is not a JSON object"),
        ([{"role": "assistant", "tool_calls": [{"id": "a"}]}], r"tool_calls\[0\]\.function` is not a JSON object"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], r"tool_calls\[0\]` is not a string"),
    ],
)
def test_a_message_in_another_form_is_named(value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_messages(value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (["now"], r"`tools\[0\]` is not a JSON object"),
        ([{"name": "a"}, {}], r"`tools\[1\]` has no `name`"),
        ({"name": ""}, r"`tools\[0\]` has no `name`"),
        ({"name": 5}, r"`tools\[0\]` has no `name`"),
        ({"type": "function", "function": "now"}, r"`tools\[0\]\.function` is not a JSON object"),
        ({"name": "a", "description": 5}, r"description` is not a string"),
        ({"name": "a", "parameters": 5}, r"parameters` is not a JSON object"),
    ],
)
def test_a_tool_in_another_form_is_named(value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_tools(value)
