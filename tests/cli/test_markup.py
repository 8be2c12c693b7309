"""Text from outside (paths, commands, names) is printed as it is: square brackets in it are not Rich's markup."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.errors import MarkupError
from rich.text import Text

from edgekit import doctor
from edgekit.bundle.bundle import open_bundle
from edgekit.bundle.manifest import MANIFEST_NAME
from edgekit.cli.console import console, progress_bar, stderr
from tests.conftest import edgekit
from tests.generation.bundles import tiny_bundle

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "edgekit").rglob("*.py"), *(ROOT / "export").rglob("*.py")])
OUTPUT = ROOT / "edgekit" / "cli" / "output.py"


def _calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, node


def test_nothing_prints_through_a_console_that_reads_markup() -> None:
    found = []
    for path in SOURCES:
        for name, call in _calls(path):
            markup = next((item.value for item in call.keywords if item.arg == "markup"), None)
            off = isinstance(markup, ast.Constant) and markup.value is False
            makes_console = name == "Console" and not (path == OUTPUT and off)
            # Its own default reads markup, whatever the console does.
            reads = (name in {"TextColumn", "SpinnerColumn"} or markup is not None) and not off
            # A spinner reads markup in a string, and has no argument that turns it off.
            spins = name in {"status", "Status", "Spinner"} and "cli" in path.parts
            reads |= spins and not all(isinstance(argument, ast.Call) for argument in call.args)
            if makes_console or reads or name in {"from_markup", "render_markup"}:
                found.append(f"{path.relative_to(ROOT)}:{call.lineno}: {name}")
    assert found == []


def test_no_text_is_written_as_markup() -> None:
    for path in sorted((ROOT / "edgekit" / "cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "[/" in node.value:
                with pytest.raises(MarkupError):
                    # It would be printed as it is now.
                    Text.from_markup(node.value)


@pytest.mark.parametrize("printer", [console, stderr])
def test_a_console_prints_brackets_and_colons_as_they_are(printer: object) -> None:
    with console.capture() as captured:
        console.print("pip install 'edgekit-llm[daemon]' [/] [bold]x[/bold] :smile:", style="dim")
    assert captured.get() == "pip install 'edgekit-llm[daemon]' [/] [bold]x[/bold] :smile:\n"
    assert printer._markup is False  # type: ignore[attr-defined]
    assert printer._emoji is False  # type: ignore[attr-defined]


def test_a_progress_bar_shows_the_name_of_its_stage() -> None:
    with progress_bar() as bar:
        bar("reading [v1]/model", 1, 2)
        (task,) = bar._progress.tasks
        column = bar._progress.columns[0]
        assert not isinstance(column, str)
        shown = column(task)
    assert str(shown) == "reading [v1]/model"


def test_the_doctors_commands_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in {"paho", "onnx"} else object())
    shown = edgekit("doctor", check=False).stdout
    assert "-m pip install 'edgekit-llm[daemon]'" in shown
    assert "-m pip install 'edgekit-llm[export]'" in shown


def test_a_path_with_brackets_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "[v1]" / "[bold] [/]"
    folder.mkdir(parents=True)
    bundle = tiny_bundle(folder, "onnx")
    assert f"{bundle} is sound" in edgekit("verify", bundle).stdout
    assert "tiny" in edgekit("info", bundle).stdout
    (bundle / "config.json").write_text("{}", encoding="utf-8")
    damaged = edgekit("verify", bundle, check=False)
    assert damaged.returncode
    assert str(folder / "nothing") in edgekit("info", folder / "nothing", check=False).stderr


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "\x1b[31mred\x9b\r"
    folder.mkdir()
    bundle = tiny_bundle(folder, "onnx")
    manifest = replace(open_bundle(bundle).manifest, name="\x1b]0;title\x07", licence="\x1b[2J")
    (bundle / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    shown = [
        edgekit(*arguments, check=False)
        for arguments in (
            ("info", bundle),
            ("verify", bundle),
            ("plan", folder / "checkpoint", "-t", "cpu"),
            ("export", folder / "checkpoint", "-t", "cpu", "-o", folder / "out"),
            ("run", bundle, "Hi", "--max-tokens", "1"),
            ("run", folder / "nowhere", "Hi"),
        )
    ]
    assert [done.returncode for done in shown[:5]] == [0] * 5
    text = "".join(done.stdout + done.stderr for done in shown)
    assert "\\x1b[31mred\\x9b/bundle is sound" in text
    assert "\\x1b]0;title" in text
    assert not {code for code in map(ord, text) if code < 32 or 127 <= code < 160} - {10}
