"""Every install command that edgekit prints or documents names its own distribution, and extras that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.cli import _EXTRAS as EXTRAS_OF_VERBS
from edgekit.doctor import pip_install
from edgekit.errors import missing_extra

REPOSITORY = Path(__file__).parent.parent
NAME = "edgekit-llm"
# A requirement of ours in any text, and the words that follow `pip install`.
REQUIREMENT = re.compile(r"(?<![\w./-])(edgekit[\w-]*)\[([^\]]*)\]")
COMMAND = re.compile(r"pip3? install((?: +(?:-\S+|'[^']*'|\"[^\"]*\"|[^\s'\"`,)]+))+)")
SUFFIXES = {".py", ".md", ".sh", ".toml", ".yaml", ".c", ".h", ".service", ".plist", ""}
# Placeholders of Python's f-strings and of shell scripts.
FILLED_IN = re.compile(r"\{\w+\}|\$\w+")


def texts() -> Iterator[tuple[str, str]]:
    """The name and text of each file that may tell users what to install."""
    files = [REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "pyproject.toml", "hatch_build.py")]
    for folder in ("benchmarks", "docs", "edgekit", "export", "scripts", "systemd", "targets", "tests"):
        files += [path for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    for path in files:
        if path.suffix in SUFFIXES and path != Path(__file__):
            yield str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8")


def extras() -> set[str]:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^([a-z-]+) = \[", section, re.MULTILINE))


def test_every_requirement_of_ours_names_the_distribution_and_extras_that_exist() -> None:
    known, found = extras(), []
    for file, text in texts():
        for name, listed in REQUIREMENT.findall(text):
            found.append(file)
            assert name == NAME, f"{file}: {name}[{listed}]"
            named = {extra for extra in listed.split(",") if not FILLED_IN.fullmatch(extra)}
            assert named <= known, f"{file}: {name}[{listed}]"
    assert {"README.md", "docs/service.md", "edgekit/doctor.py", "edgekit/errors.py", "pyproject.toml"} <= set(found)


def test_no_command_installs_the_project_that_has_our_name() -> None:
    commands = [(file, words) for file, text in texts() for words in COMMAND.findall(text)]
    assert len(commands) > 5
    for file, words in commands:
        for word in words.split():
            name = re.match(r"[\w.-]*", word.strip("'\"")).group()  # type: ignore[union-attr]  # it matches ""
            assert name != "edgekit", f"{file}: pip install{words}"


@pytest.mark.parametrize("name", ["missing_extra", "pip_install"])
def test_every_extra_that_code_names_exists(name: str) -> None:
    known, found = extras(), []
    for file, text in texts():
        if not file.endswith(".py") or file.startswith("tests/"):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                extra = node.args[-1]
                if isinstance(extra, ast.Constant):
                    found.append(extra.value)
    assert set(found) <= known
    assert name != "missing_extra" or {"export", "onnxruntime", "mlx"} <= set(found)


def test_what_is_printed_is_such_a_command() -> None:
    assert missing_extra("paho", "daemon").hint == "pip install 'edgekit-llm[daemon]'"
    assert pip_install("mlx").endswith(" -m pip install 'edgekit-llm[mlx]'")
    assert set(EXTRAS_OF_VERBS.values()) <= extras()
