from __future__ import annotations

from edgekit.generation.tools import TextPiece
from edgekit.generation.tools.qwen3 import Qwen3
from tests.generation.tools.pieces import TOOLS, parse

QWEN3 = Qwen3("", {})
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def test_a_call_in_thoughts_is_not_made() -> None:
    thoughts = f"<think>\nMaybe {NOW}?\n</think>\n\n"
    assert parse(QWEN3, [f"{thoughts}{NOW}"]) == [("thinking", thoughts), ("id0", "now", "{}")]


def test_thoughts_and_answer_are_told_apart() -> None:
    assert parse(QWEN3, list("<think>\nHm.\n</think>\n\nHi <think>")) == [
        ("thinking", "<think>\nHm.\n</think>\n\n"),
        "Hi <think>",
    ]


def test_a_tag_is_a_piece_of_its_own() -> None:
    parser = QWEN3.parser(lambda: "", TOOLS)
    pieces = parser.push("<think>\nHm.</think>\n\nHi")
    assert pieces == [
        TextPiece("<think>", thinking=True, mark=True),
        TextPiece("\nHm.", thinking=True),
        TextPiece("</think>", thinking=True, mark=True),
        TextPiece("\n\n", thinking=True, mark=True),
        TextPiece("Hi"),
    ]


def test_thoughts_that_the_prompt_began_go_on() -> None:
    assert parse(QWEN3, [f"Hm {NOW}</think>\n\nHi"], thinking=True) == [("thinking", f"Hm {NOW}</think>\n\n"), "Hi"]


def test_thoughts_that_never_end_are_thoughts() -> None:
    assert parse(QWEN3, [f"<think>Hm {NOW}</th"]) == [("thinking", f"<think>Hm {NOW}</th")]


def test_an_answer_without_thoughts_is_an_answer() -> None:
    assert parse(QWEN3, ["\nHi"]) == ["\nHi"]
    assert parse(QWEN3, ["<thi"]) == ["<thi"]


def test_without_tools_nothing_waits_to_become_a_call() -> None:
    parser = QWEN3.parser(lambda: "", ())
    assert parser.push("Look:\n```json\n{") == [TextPiece("Look:\n```json\n{")]
    assert parser.push("<tool_call>") == [TextPiece("<tool_call>")]
