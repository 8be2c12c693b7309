from __future__ import annotations

import pytest

from edgekit.generation.tools.hermes import Hermes
from tests.generation.tools.events import TOOLS, counting_ids, merged, parse

HERMES = Hermes("", {})
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def test_calls_in_a_row_have_ids_of_their_own_and_no_text_between_them() -> None:
    assert parse(HERMES, [f"{PARIS}\n{NOW}\n"]) == [("id0", "weather", '{"city": "Paris"}'), ("id1", "now", "{}")]


def test_text_before_a_call_keeps_all_but_the_line_feed_that_the_template_puts_there() -> None:
    assert parse(HERMES, [f"Let me see.\n\n{NOW}"]) == ["Let me see.\n", ("id0", "now", "{}")]


def test_text_after_a_call_is_text() -> None:
    assert parse(HERMES, [f"{NOW}\nDone."]) == [("id0", "now", "{}"), "\nDone."]


def test_keys_may_come_in_any_order_and_in_any_layout() -> None:
    text = '<tool_call>{\n "arguments": {"a" : 1},\n "id": 3, "name":"find"}</tool_call>'
    for enforced in (False, True):
        assert parse(HERMES, [text], enforced=enforced) == [("id0", "find", '{"a" : 1}')]


def test_a_missing_closing_tag_is_forgiven() -> None:
    assert parse(HERMES, [PARIS.removesuffix("\n</tool_call>")]) == [("id0", "weather", '{"city": "Paris"}')]
    assert parse(HERMES, [PARIS[:-3]]) == [("id0", "weather", '{"city": "Paris"}')]


def test_doubled_braces_as_a_faulty_template_teaches_them_are_read() -> None:
    text = '<tool_call>\n{{"name": "weather", "arguments": {"city": "Paris"}}}\n</tool_call>\n' + NOW
    assert parse(HERMES, [text]) == [("id0", "weather", '{"city": "Paris"}'), ("id1", "now", "{}")]


def test_arguments_in_a_string_are_what_the_string_holds() -> None:
    text = '<tool_call>\n{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}\n</tool_call>'
    assert parse(HERMES, [text]) == [("id0", "weather", '{"city": "Paris"}')]


def test_a_valid_call_after_an_invalid_one_is_emitted() -> None:
    bad = '<tool_call>\n{"name": "weather", "arguments": {"city": }}\n</tool_call>'
    assert parse(HERMES, [f"{bad}\n{NOW}"]) == [bad, ("id0", "now", "{}")]
    assert parse(HERMES, [f"<tool_call>\n{NOW}"]) == ["<tool_call>", ("id0", "now", "{}")]


@pytest.mark.parametrize("text", ["a < b", "<tool", "<tool_calls>", "x\n", "\n\n<b>"])
def test_what_only_looks_like_a_tag_is_text(text: str) -> None:
    assert parse(HERMES, list(text)) == [text]


def test_an_object_in_a_fence_is_a_call_if_it_names_a_tool_that_is_not_strict() -> None:
    text = 'So:\n```json\n{\n  "name": "find",\n  "arguments": {\n    "q": 1\n  }\n}\n```\nDone.'
    for enforced in (False, True):
        assert parse(HERMES, [text], enforced=enforced) == ["So:", ("id0", "find", '{\n    "q": 1\n  }'), "\nDone."]
    for other in ("weather", "unknown"):
        assert parse(HERMES, [text.replace("find", other)], enforced=True) == [text.replace("find", other)]


@pytest.mark.parametrize("enforced", [False, True])
def test_a_call_in_a_fence_that_no_grammar_holds_is_text_if_it_turns_out_to_be_invalid(enforced: bool) -> None:
    text = '```json\n{"name": "find", "arguments": {"q": oops}}\n```'
    assert parse(HERMES, list(text), enforced=enforced) == [text]


@pytest.mark.parametrize(
    "text", ['```json\n{"a": 1}\n```', "```json\n[1]\n```", "```js", "```python\n{}\n```", '```json\n{"name": "find"']
)
def test_other_code_is_text(text: str) -> None:
    assert parse(HERMES, list(text)) == [text]


def test_only_a_call_that_a_grammar_holds_is_streamed() -> None:
    begun = '<tool_call>\n{"name": "find", "arguments": {"q": '
    for enforced, events in ((False, []), (True, [("id0", "find", '{"q": ')])):
        assert merged(HERMES.parser(counting_ids(), TOOLS, enforced=enforced).push(begun)) == events
    # No grammar holds a call in a fence.
    fenced = begun.replace("<tool_call>", "```json")
    assert HERMES.parser(counting_ids(), TOOLS, enforced=True).push(fenced) == []
