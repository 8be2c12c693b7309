from __future__ import annotations

import re

import pytest

from edgekit.generation.tools.mistral import Mistral
from edgekit.generation.types import Tool
from tests.generation.tools.events import merged, parse

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


def test_an_invalid_item_in_a_list_is_text_and_earlier_calls_are_kept() -> None:
    assert parse(MISTRAL, [f'[TOOL_CALLS] [{ITEMS[0]}, {{"name": 1}}]']) == [CALLS[0], ', {"name": 1}]']


@pytest.mark.parametrize("text", ["[TOOL_CALLS] []", "[TOOL_CALLS] 7", "[TOOL_CALLS]now {}", "[TOOL_CALLS]now[ARGS]7"])
def test_what_is_neither_a_list_nor_a_name_is_text(text: str) -> None:
    assert parse(MISTRAL, [text]) == [text]


def test_ids_are_nine_letters_and_digits() -> None:
    shape = re.compile(r"[a-zA-Z0-9]{9}")
    ids = {MISTRAL.new_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(shape.fullmatch(call_id) for call_id in ids)
    assert MISTRAL.prompt_id("abcdefgh1") == "abcdefgh1"
    # Another client's ids are mapped deterministically.
    foreign = MISTRAL.prompt_id("call_12345")
    assert shape.fullmatch(foreign)
    assert foreign == MISTRAL.prompt_id("call_12345") != MISTRAL.prompt_id("call_12346")


@pytest.mark.parametrize(("length", "called"), [(200, True), (201, False)])
def test_a_name_has_at_most_200_characters(length: int, called: bool) -> None:
    name = "n" * length
    text = f"[TOOL_CALLS]{name}[ARGS]{{}}"
    for chunks in ([text], list(text)):
        parser = MISTRAL.parser(lambda: "id", [Tool(name)])
        events = [event for chunk in chunks for event in parser.push(chunk)]
        # A longer one is text as soon as no name can come any more.
        assert merged([*events, *parser.finish()]) == ([("id", name, "{}")] if called else [text])


@pytest.mark.parametrize("name", ["no{w", "no}w", 'no"w', "no\nw"])
def test_what_no_name_contains_makes_it_text(name: str) -> None:
    assert parse(MISTRAL, [f"[TOOL_CALLS]{name}[ARGS]{{}}"]) == [f"[TOOL_CALLS]{name}[ARGS]{{}}"]


def test_a_prompts_ids_have_nine_letters_or_digits_always_the_same() -> None:
    assert MISTRAL.prompt_id("abcdefgh1") == "abcdefgh1"
    short, other = MISTRAL.prompt_id("call_1"), MISTRAL.prompt_id("call_2")
    assert short == MISTRAL.prompt_id("call_1") != other
    for made in (short, other, MISTRAL.prompt_id("abcdefgh12"), MISTRAL.prompt_id("abcd-fgh1"), MISTRAL.new_id()):
        assert re.fullmatch("[a-zA-Z0-9]{9}", made)
