"""`scripts/bench` lists the benchmarks, each runs with `--quick`, and edgekit is compared with the best peer."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
COMMANDS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/bench with arguments for which it needs no environment."""
    command = [str(ROOT / "scripts" / "bench"), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def run(name: str, *arguments: str, folder: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a benchmark without peers."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGEKIT_BENCH_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=folder, env=environment
    )


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a module of the benchmarks, which are scripts and not a package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_the_list_has_every_benchmark_with_the_first_line_of_its_docstring() -> None:
    assert {"export", "generation", "quality", "soak"} <= set(COMMANDS)
    done = bench()
    assert done.returncode == 0, done.stderr
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(listed) == COMMANDS
    for name, description in listed.items():
        docstring = ast.get_docstring(ast.parse((BENCHMARKS / f"{name}.py").read_text(encoding="utf-8")))
        assert docstring is not None
        assert description == docstring.splitlines()[0]


def test_an_unknown_name_is_an_error_that_names_the_nearest() -> None:
    done = bench("generatoin", "--quick")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown benchmark `generatoin`\n\nhint: did you mean `generation`?")
    assert bench("xyz").stderr == "error: unknown benchmark `xyz`\n\nhint: scripts/bench lists them\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_benchmark_mentions_quick(name: str, tmp_path: Path) -> None:
    done = run(name, "--help", folder=tmp_path, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
    assert "the figures mean nothing" in " ".join(done.stdout.split())


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.broker
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_runs_quickly_without_arguments_and_without_peers(name: str, tmp_path: Path) -> None:
    done = run(name, "--quick", folder=tmp_path, timeout_s=580)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.startswith("--quick: ")
    assert "the figures mean nothing" in done.stderr
    assert done.stdout


def test_a_peer_that_is_not_installed_is_left_out(
    part: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    peers = part("peers")
    peer = peers.Peer("a peer", "llama", ("a_module_that_does_not_exist",))
    assert peers.interpreter(peer, argparse.Namespace(llama_python=sys.executable)) is None
    message = capsys.readouterr().err
    assert message.startswith("a peer is left out: ")
    assert "a_module_that_does_not_exist" in message
    installed = peers.Peer("json", "llama", ("json",))
    assert peers.interpreter(installed, argparse.Namespace(llama_python=sys.executable)) == sys.executable
    with pytest.raises(SystemExit, match="No such file"):
        peers.interpreter(installed, argparse.Namespace(llama_python="/nowhere/python"))


def test_a_peers_interpreter_is_named_by_a_flag_or_by_the_environment(
    part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = part("peers")

    def parsed(*arguments: str) -> str:
        parser = argparse.ArgumentParser()
        peers.add_peers(parser, peers.LLAMA)
        return str(parser.parse_args(arguments).llama_python)

    monkeypatch.delenv("EDGEKIT_BENCH_LLAMA_PYTHON", raising=False)
    assert parsed() == sys.executable
    monkeypatch.setenv("EDGEKIT_BENCH_LLAMA_PYTHON", "/peers/python")
    assert parsed() == "/peers/python"
    assert parsed("--llama-python", "/other/python") == "/other/python"


def test_quick_replaces_defaults_and_an_argument_replaces_those(
    part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def parsed(*arguments: str) -> int:
        parser = argparse.ArgumentParser()
        parser.add_argument("--rounds", type=int, default=100)
        monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
        return int(part("quick").parse(parser, {"rounds": 1}).rounds)

    assert parsed() == 100
    assert capsys.readouterr().err == ""
    assert parsed("--quick") == 1
    assert "the figures mean nothing" in capsys.readouterr().err
    assert parsed("--quick", "--rounds", "7") == 7


def test_both_forms_of_llama_cpp_take_part_in_every_scenario(part: Callable[[str], Any]) -> None:
    scenarios = part("speed.scenarios")
    prompts = scenarios.Prompts(lambda text: [1] * len(text), lambda ids: "a" * len(ids), 0, "a text")
    for name, create in scenarios.ORDINARY.items():
        found = create(prompts, scenarios.Sizes.quick(), 1).contenders
        own, other = (
            [contender.options for contender in found if contender.installation == form]
            for form in scenarios.LLAMA_FORMS
        )
        assert own, name
        assert own == other, name
        labels = [contender.label for contender in found]
        assert len(set(labels)) == len(labels), name


def results(rows: dict[str, tuple[str, float]]) -> dict[str, Any]:
    """Return a table with one figure, by label and engine."""
    return {
        "title": "a title",
        "rounds": 1,
        "date": "2026-01-02",
        "machine": "a machine",
        "bundle": "a recipe",
        "figures": [{"key": "rate", "title": "tokens/s", "better": "more", "digits": 1}],
        "rows": {
            label: {"version": "1.0", "engine": engine, "figures": {"rate": [rate]}}
            for label, (engine, rate) in rows.items()
        },
        "left_out": {},
    }


def test_edgekit_is_compared_with_the_best_of_all_peers_and_their_forms(part: Callable[[str], Any]) -> None:
    report = part("speed.report")
    table = results(
        {
            "edgekit": ("edgekit", 60.0),
            "edgekit, runner only": ("edgekit", 90.0),
            "llama.cpp": ("llama.cpp", 10.0),
            "llama.cpp Q4_0": ("llama.cpp", 20.0),
            "llama.cpp Q4_0, lookup of 2": ("llama.cpp", 30.0),
            "onnxruntime-genai": ("onnxruntime-genai", 15.0),
        }
    )
    assert report.ratios(table) == {"rate": (2.0, "llama.cpp Q4_0, lookup of 2")}
    lines = report.comparison("a model", {"copying": table}).splitlines()
    columns = ("a model", "edgekit 1.0", "llama.cpp 1.0", "llama.cpp Q4_0 1.0", "onnxruntime-genai 1.0")
    assert lines[0] == f"| {' | '.join(columns)} | **edgekit / best peer** |"
    assert lines[2] == "| copying: tokens/s | 60.0 | 10.0 | 30.0 | 15.0 | **2.00** |"
    assert "| llama.cpp Q4_0 1.0, lookup of 2 | 30.0 |" in report.markdown("a model", table)


def test_the_chart_names_the_best_peer(part: Callable[[str], Any]) -> None:
    drawn = part("speed.chart").draw([("a model", [("prompt", 2.0, "llama.cpp Q4_0"), ("decode", 0.5, "genai")])], "")
    assert "2.00 llama.cpp Q4_0" in drawn
    assert "0.50 genai" in drawn


def test_installed_peers_take_part_without_the_flag_and_a_chosen_python_is_kept(tmp_path: Path) -> None:
    for folder in ("scripts", "benchmarks", ".venv-peers"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "scripts" / "bench", tmp_path / "scripts")
    # A double of the setup, which would make a virtual environment.
    setup = 'cd "$(dirname "${BASH_SOURCE[0]}")/.."; setup() { :; }; ALL_EXTRAS=""; die() { echo "$1" >&2; exit 1; }\n'
    (tmp_path / "scripts" / "setup.sh").write_text(setup)
    names = ("EDGEKIT_BENCH_LLAMA_PYTHON", "EDGEKIT_BENCH_GENAI_PYTHON")
    shown = f'if __name__ == "__main__":\n    import os\n    print(*map(os.environ.get, {names}))\n'
    (tmp_path / "benchmarks" / "one.py").write_text(f'"""Prints."""\n{shown}')

    def run_it(**variables: str) -> list[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGEKIT_BENCH_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [tmp_path / "scripts" / "bench", "one"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**environment, "PYTHON": sys.executable, "PATH": path, **variables},
        )
        return done.stdout.split()

    assert run_it() == ["None", "None"]
    (tmp_path / ".venv-peers" / "pins").write_text("llama-cpp-python==1\n")
    python = str(tmp_path / ".venv-peers" / "bin" / "python")
    assert run_it() == [python, python]
    assert run_it(EDGEKIT_BENCH_LLAMA_PYTHON="/mine") == ["/mine", python]
