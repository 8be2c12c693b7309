"""docs/export.md says what exports to what: every row's test exists, and nothing that exists is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from edgekit.export.architectures import architectures
from edgekit.export.recipes.recipe import METHODS
from edgekit.profile import target_names

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "export.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`((?:\w+/)*test_\w+)::(test_\w+)`", PAGE)


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_every_test_that_the_page_names_exists() -> None:
    assert len(NAMED) > 25
    for module, name in NAMED:
        tree = ast.parse((TESTS / f"{module}.py").read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{module}::{name}"


def test_every_row_names_a_test() -> None:
    for title in ("Checkpoints", "Recipes", "Targets", "The second exporter"):
        rows = [line for line in section(title).splitlines() if line.startswith("| ")][1:]
        assert rows, title
        for row in rows:
            assert "::test_" in row, row


def test_every_architecture_recipe_and_target_is_on_the_page() -> None:
    missing = [
        f"docs/export.md, section {title}, names no `{name}`"
        for title, names, cell in (
            ("Architectures", architectures(), "| `{}` |"),
            ("Recipes", METHODS, "| `{}`"),
            ("Targets", target_names(), "`{}`"),
        )
        for name in names
        if cell.format(name) not in section(title)
    ]
    assert not missing, "\n".join(missing)
