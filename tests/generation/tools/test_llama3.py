from __future__ import annotations

import pytest

from edgekit.generation.tools import TextDelta
from edgekit.generation.tools.llama3 import Llama3
from tests.generation.tools.events import parse

LLAMA3 = Llama3("", {})
PARIS = '{"name": "weather", "parameters": {"city": "Paris"}}'
FOUND = ("id0", "weather", '{"city": "Paris"}')


@pytest.mark.parametrize("before", ["", "\n\n", "<|python_tag|>", " <|python_tag|> "])
def test_an_object_in_place_of_an_answer_is_a_call(before: str) -> None:
    assert parse(LLAMA3, [before + PARIS]) == [FOUND]


def test_the_token_opens_a_call_after_text_too_and_a_brace_does_not() -> None:
    assert parse(LLAMA3, [f"See: <|python_tag|>{PARIS}"]) == ["See: ", FOUND]
    assert parse(LLAMA3, [f"See: {PARIS}"]) == [f"See: {PARIS}"]


def test_additional_keys_and_the_other_name_for_parameters_are_accepted() -> None:
    text = '{"type": "function", "name": "weather", "arguments": {"city": "Paris"}}'
    assert parse(LLAMA3, [text]) == [FOUND]


def test_calls_separated_by_semicolons_are_several() -> None:
    second = '{"name": "now", "parameters": {}}'
    assert parse(LLAMA3, [f"{PARIS}; {second}"]) == [FOUND, ("id1", "now", "{}")]
    assert parse(LLAMA3, [f"<|python_tag|>{PARIS}\n{second}"]) == [FOUND, ("id1", "now", "{}")]


@pytest.mark.parametrize(
    "text",
    ['{"city": "Paris"}', '{"name": "Bob", "age": 3}', '<|python_tag|>search.call(query="x")', "{", "<|python", "{a}"],
)
def test_json_and_code_that_call_no_tool_are_text(text: str) -> None:
    assert parse(LLAMA3, list(text)) == [text]


def test_without_tools_an_object_is_text_as_it_comes() -> None:
    assert LLAMA3.parser(lambda: "", ()).push('{"name": ') == [TextDelta('{"name": ')]
