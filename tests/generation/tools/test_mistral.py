from __future__ import annotations

import re

import pytest

from edgekit.generation.tools.mistral import Mistral
from tests.generation.tools.pieces import parse

MISTRAL = Mistral("", {})
ITEMS = '{"name": "weather", "arguments": {"city": "Paris"}}', '{"name": "now", "arguments": {}, "id": "abcdefgh1"}'
CALLS = [("id0", "weather", '{"city": "Paris"}'), ("id1", "now", "{}")]


@pytest.mark.parametrize("text", ["[TOOL_CALLS] [{}, {}]", "[TOOL_CALLS][{},{}]", "[TOOL_CALLS]\n[\n{} , {}\n]\n"])
def test_a_list_is_as_many_calls_as_it_has_items(text: str) -> None:
    assert parse(MISTRAL, [text.replace("{}", ITEMS[0], 1).replace("{}", ITEMS[1], 1)]) == CALLS


def test_names_before_their_arguments_are_calls() -> None:
    text = '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now[ARGS]{}'
    assert parse(MISTRAL, [text]) == CALLS


def test_an_id_that_the_model_gives_is_the_calls_id() -> None:
    assert parse(MISTRAL, ["[TOOL_CALLS]now[CALL_ID]abcdefgh1[ARGS]{}"]) == [("abcdefgh1", "now", "{}")]
    assert parse(MISTRAL, ["[TOOL_CALLS]now[CALL_ID]short[ARGS]{}"]) == [("id0", "now", "{}")]


def test_text_before_calls_is_text() -> None:
    assert parse(MISTRAL, [f"Let me see. [TOOL_CALLS] [{ITEMS[0]}]"]) == ["Let me see. ", CALLS[0]]


def test_what_is_wrong_in_a_list_is_text_and_what_came_before_it_is_not() -> None:
    assert parse(MISTRAL, [f'[TOOL_CALLS] [{ITEMS[0]}, {{"name": 1}}]']) == [CALLS[0], ', {"name": 1}]']


@pytest.mark.parametrize("text", ["[TOOL_CALLS] []", "[TOOL_CALLS] 7", "[TOOL_CALLS]now {}", "[TOOL_CALLS]now[ARGS]7"])
def test_what_is_no_list_and_no_name_is_text(text: str) -> None:
    assert parse(MISTRAL, [text]) == [text]


def test_ids_are_nine_letters_and_digits() -> None:
    shape = re.compile(r"[a-zA-Z0-9]{9}")
    ids = {MISTRAL.new_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(shape.fullmatch(number) for number in ids)
    assert MISTRAL.prompt_id("abcdefgh1") == "abcdefgh1"
    # Another client's ids are made to fit, the same one always to the same.
    foreign = MISTRAL.prompt_id("call_12345")
    assert shape.fullmatch(foreign)
    assert foreign == MISTRAL.prompt_id("call_12345") != MISTRAL.prompt_id("call_12346")
