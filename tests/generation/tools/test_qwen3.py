from __future__ import annotations

from edgekit.generation.tools import TextDelta
from edgekit.generation.tools.qwen3 import Qwen3
from tests.generation.tools.events import TOOLS, counting_ids, merged, parse

QWEN3 = Qwen3("", {})
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def test_a_call_in_reasoning_is_not_executed() -> None:
    reasoning = f"<think>\nMaybe {NOW}?\n</think>\n\n"
    assert parse(QWEN3, [f"{reasoning}{NOW}"]) == [("thinking", reasoning), ("id0", "now", "{}")]


def test_reasoning_is_separated_from_the_answer() -> None:
    assert parse(QWEN3, list("<think>\nHm.\n</think>\n\nHi <think>")) == [
        ("thinking", "<think>\nHm.\n</think>\n\n"),
        "Hi <think>",
    ]


def test_a_tag_is_an_event_of_its_own() -> None:
    parser = QWEN3.parser(lambda: "", TOOLS)
    events = parser.push("<think>\nHm.</think>\n\nHi")
    assert events == [
        TextDelta("<think>", thinking=True, delimiter=True),
        TextDelta("\nHm.", thinking=True),
        TextDelta("</think>", thinking=True, delimiter=True),
        TextDelta("\n\n", thinking=True, delimiter=True),
        TextDelta("Hi"),
    ]


def test_reasoning_opened_by_the_prompt_continues() -> None:
    assert parse(QWEN3, [f"Hm {NOW}</think>\n\nHi"], thinking=True) == [("thinking", f"Hm {NOW}</think>\n\n"), "Hi"]


def test_reasoning_that_never_ends_is_reasoning() -> None:
    assert parse(QWEN3, [f"<think>Hm {NOW}</th"]) == [("thinking", f"<think>Hm {NOW}</th")]


def test_an_answer_without_reasoning_is_an_answer() -> None:
    assert parse(QWEN3, ["\nHi"]) == ["\nHi"]
    assert parse(QWEN3, ["<thi"]) == ["<thi"]


def test_without_tools_no_text_is_held_back() -> None:
    parser = QWEN3.parser(lambda: "", ())
    assert parser.push("Look:\n```json\n{") == [TextDelta("Look:\n```json\n{")]
    assert parser.push("<tool_call>") == [TextDelta("<tool_call>")]


def test_calls_are_parallel_and_complete_unless_asked_otherwise() -> None:
    assert parse(QWEN3, [f"{NOW}\n{NOW}"]) == [("id0", "now", "{}"), ("id1", "now", "{}")]
    assert parse(QWEN3, [f"{NOW}\n{NOW}"], parallel=False) == [("id0", "now", "{}"), NOW]
    begun = '<tool_call>\n{"name": "now", "arguments": {'
    assert QWEN3.parser(counting_ids(), TOOLS).push(begun) == []
    assert merged(QWEN3.parser(counting_ids(), TOOLS, enforced=True).push(begun)) == [("id0", "now", "{")]
