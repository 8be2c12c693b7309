"""docs/structured-output.md says what is enforced and what is not, as the code has it."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

from edgekit.generation.grammar.keywords import ANNOTATIONS, ENFORCED, FORMATS, NUMBER_FORMATS, REFUSED

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "structured-output.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_every_enforced_word_has_a_row_and_every_row_a_test() -> None:
    table = rows(section("Words of JSON Schema that are enforced"))
    words = [word for row in table for word in quoted(row[0])]
    assert sorted(words) == sorted(ENFORCED)
    for row in [*table, *rows(PAGE.split("\n## ", 1)[0])]:
        assert "::test_" in row[-1], row


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(test_\w+)::(test_\w+)`", PAGE)
    assert len(named) > 15
    for module, name in named:
        tree = ast.parse((TESTS / "generation" / "grammar" / f"{module}.py").read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{module}::{name}"


def test_formats_remarks_and_refused_words_are_listed() -> None:
    formats = section("Words of JSON Schema that are enforced").split("Formats: ", 1)[1].split("\n\n", 1)[0]
    assert quoted(formats) == [*FORMATS, *NUMBER_FORMATS]
    assert sorted(quoted(section("Words that are remarks"))) == sorted([*ANNOTATIONS, "x-", "$id"])
    listed = quoted(section("Words that are refused").split("and\n\n", 1)[1].split("\n\n", 1)[0])
    assert listed == list(REFUSED)


def test_the_limits_are_the_codes() -> None:
    table = rows(section("Limits"))
    assert len(table) > 12
    for _, most, constant in table:
        module, name = quoted(constant)[0].split(".")
        assert getattr(import_module(f"edgekit.generation.grammar.{module}"), name) == int(most), constant
