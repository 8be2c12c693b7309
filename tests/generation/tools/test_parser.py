"""Behaviour that all formats share."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgekit.generation.tools import ToolFormat
from edgekit.generation.tools.hermes import Hermes
from edgekit.generation.tools.llama3 import Llama3
from edgekit.generation.tools.mistral import Mistral
from edgekit.generation.tools.qwen3 import Qwen3
from tests.generation.tools.events import TOOLS, chunks, parse

HERMES, QWEN3, LLAMA3 = Hermes("", {}), Qwen3("", {}), Llama3("", {})
LISTED, NAMED = Mistral("", {}), Mistral("[ARGS]", {})
FORMATS = [HERMES, QWEN3, LLAMA3, LISTED, NAMED]
FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    *('{"name": "weather", ', '"arguments": ', '"parameters": ', '{"city": "Paris"}', "weather", "now", "unknown"),
    *('{"name": "unknown", "arguments": {}}', '{"name": "now", "arguments": {}}', '{"name": "now", "parameters": {}}'),
    *("```json\n", "```", '{"name": "find", "arguments": {}}'),
    *("{", "}", "[", "]", ",", ";", "\n", " ", '"', "<", "text", "é世", "abcdefgh1", '"{}"', "\\"),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


def call(format_: ToolFormat, name: str, arguments: str) -> str:
    """A call as a model of this format writes it."""
    if format_ in {HERMES, QWEN3}:
        return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
    if format_ is LLAMA3:
        return f'{{"name": "{name}", "parameters": {arguments}}}'
    if format_ is LISTED:
        return f'[TOOL_CALLS] [{{"name": "{name}", "arguments": {arguments}}}]'
    return f"[TOOL_CALLS]{name}[ARGS]{arguments}"


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("enforced", [False, True])
@given(text=TEXTS, data=st.data())
def test_the_events_do_not_depend_on_the_chunks(
    format_: ToolFormat, enforced: bool, text: str, data: st.DataObject
) -> None:
    parts = data.draw(chunks(text))
    expected = parse(format_, [text], enforced=enforced)
    assert parse(format_, parts, enforced=enforced) == expected
    assert parse(format_, list(text), enforced=enforced) == expected


@pytest.mark.parametrize("format_", FORMATS)
@given(text=TEXTS)
@example("\n<tool_call>\n<tool_call>\n{")
@example('[TOOL_CALLS] [{"name": "unknown", "arguments": {}}]')
def test_text_without_a_valid_call_is_emitted_verbatim(format_: ToolFormat, text: str) -> None:
    found = parse(format_, [text])
    texts = [event if isinstance(event, str) else event[1] for event in found]
    if all(isinstance(event, str) or event[0] == "thinking" for event in found):
        assert "".join(texts) == text
    # Next to valid calls, no character of the text is added or moved.
    rest = iter(text)
    assert all(char in rest for event in found if isinstance(event, str) for char in event)


@pytest.mark.parametrize("format_", FORMATS)
@given(text=TEXTS)
def test_only_tools_that_are_there_are_called_and_with_json_objects(format_: ToolFormat, text: str) -> None:
    for event in parse(format_, [text]):
        if not isinstance(event, str) and event[0] != "thinking":
            assert event[1] in {"weather", "now", "find"}
            assert isinstance(json.loads(event[2]), dict)


@pytest.mark.parametrize("enforced", [False, True])
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("arguments", ['{"city": "Paris"}', '{ "city":\n"P\\u00e9\\"}{" , "x":[1.50, {}]}', "{}"])
def test_the_arguments_are_the_json_text_byte_for_byte(format_: ToolFormat, enforced: bool, arguments: str) -> None:
    text = call(format_, "weather", arguments)
    assert parse(format_, [text], enforced=enforced) == [("id0", "weather", arguments)]


@pytest.mark.parametrize("format_", FORMATS)
def test_arguments_enforced_by_a_grammar_are_streamed(format_: ToolFormat) -> None:
    text = call(format_, "weather", '{"city": "Paris"}')
    parser = format_.parser(lambda: "id", TOOLS, enforced=True)
    start = text.index("Par")
    assert len(parser.push(text[:start])) == 2
    assert [event.text for event in parser.push("Pa")] == ["Pa"]  # type: ignore[union-attr]
    unconstrained = format_.parser(lambda: "id", TOOLS)
    assert unconstrained.push(text[: start + 5]) == []


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("bad", ['{"city": "Paris"', '{"city": Paris}', "[1]", '"x"', "7", '{"city": "Pa\nris"}'])
def test_a_malformed_call_is_text(format_: ToolFormat, bad: str) -> None:
    text = call(format_, "weather", bad)
    assert parse(format_, [text]) == [text]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_call_of_an_unknown_tool_is_text_even_if_it_quotes_a_call(format_: ToolFormat) -> None:
    quoted = json.dumps({"q": call(format_, "now", "{}")})
    text = call(format_, "unknown", quoted)
    assert parse(format_, [text]) == [text]


@pytest.mark.parametrize("format_", FORMATS)
def test_an_incomplete_call_is_text_unless_its_start_was_emitted(format_: ToolFormat) -> None:
    text = call(format_, "weather", '{"city": "Paris"}')
    cut = text[: text.index("ris")]
    assert parse(format_, [cut]) == [cut]
    assert parse(format_, [cut], enforced=True) == [("id0", "weather", '{"city": "Pa')]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_call_that_is_cut_off_leaves_no_text_wherever_it_is_cut(format_: ToolFormat) -> None:
    first, second = call(format_, "weather", '{"city": "Paris"}'), call(format_, "now", "{}")
    both = first if format_ is LLAMA3 else f"{first}\n{second}"
    for size in range(len(both) + 1):
        for opening in ("", "<think>Hm.</think>\n\n") if format_ is QWEN3 else ("",):
            found = parse(format_, [opening + both[:size]], enforced=True, required=True)
            assert not any(isinstance(event, str) for event in found), both[:size]
    # Where text is allowed too, from where the call cannot be text any more.
    certain = first.index('"parameters"') if format_ is LLAMA3 else first.index("]" if "[" in first else ">") + 1
    for size in range(certain, len(both) + 1):
        found = parse(format_, [f"{'' if format_ is LLAMA3 else 'Well.'}{both[:size]}"], enforced=True)
        assert "".join(event for event in found if isinstance(event, str)) in ("Well.", ""), both[:size]
    # A fenced object, and JSON that names no tool, may be the answer itself.
    for text in ('```json\n{"name": "no', '{"name": "Bob'):
        assert parse(format_, [text], enforced=True) == [text]


@pytest.mark.parametrize("enforced", [False, True])
@pytest.mark.parametrize("format_", FORMATS)
def test_where_one_call_is_allowed_a_second_is_text(format_: ToolFormat, enforced: bool) -> None:
    between = "; " if format_ is LLAMA3 else "\n"
    second = call(format_, "find", '{"x": 1}')
    text = call(format_, "now", "{}") + between + second
    assert len(parse(format_, [text], enforced=enforced)) == 2
    found = parse(format_, [text], enforced=enforced, parallel=False)
    assert found[0] == ("id0", "now", "{}")
    assert found[1].strip("\n; ") == second
    assert len(found) == 2
