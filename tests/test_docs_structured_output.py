"""docs/structured-output.md agrees with the code about what is enforced and what is not."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

from edgekit.generation.grammar.keywords import ANNOTATIONS, ENFORCED, FORMATS, NUMBER_FORMATS, UNSUPPORTED

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "structured-output.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_every_enforced_keyword_has_a_row_and_every_row_a_test() -> None:
    table = rows(section("JSON Schema keywords"))
    keywords = [keyword for row in table for keyword in quoted(row[0])]
    assert sorted(keywords) == sorted(ENFORCED)
    for row in [*table, *rows(PAGE.split("\n## ", 1)[0])]:
        assert "::test_" in row[-1], row


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(test_\w+)::(test_\w+)`", PAGE)
    assert len(named) > 15
    for module, name in named:
        tree = ast.parse((TESTS / "generation" / "grammar" / f"{module}.py").read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{module}::{name}"


def test_formats_annotations_and_unsupported_keywords_are_listed() -> None:
    formats = section("JSON Schema keywords").split("String formats: ", 1)[1].split("\n\n", 1)[0]
    assert quoted(formats) == [*FORMATS, *NUMBER_FORMATS]
    assert sorted(quoted(section("Annotations").split("\n\n")[1])) == sorted(ANNOTATIONS)
    listed = quoted(section("Unsupported keywords").split("has one of\n\n", 1)[1].split("\n\n", 1)[0])
    assert listed == list(UNSUPPORTED)


def test_the_limits_agree_with_the_code() -> None:
    table = rows(section("Limits"))
    assert len(table) > 12
    for _, maximum, constant in table:
        module, name = quoted(constant)[0].split(".")
        assert getattr(import_module(f"edgekit.generation.grammar.{module}"), name) == int(maximum), constant
