"""An error that mentions an option speaks of an argument in Python and of a flag on the command line."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import edgekit
from edgekit.cli.build import build
from edgekit.cli.export import export
from edgekit.cli.output import flags_of
from edgekit.cli.plan import plan
from edgekit.cli.run import run as run_verb
from edgekit.cli.serve import serve
from edgekit.errors import EdgekitError, option, spell_options
from tests.conftest import edgekit as run
from tests.models import tiny_checkpoint

ROOT = Path(edgekit.__file__).parents[1]
# What `edgekit.export_model` reaches, and the rest of the core.
CORE = [
    *(ROOT / "export").rglob("*.py"),
    *(path for path in (ROOT / "edgekit").glob("*.py") if path.name != "doctor.py"),
    *(path for name in ("api", "bundle", "generation", "runners") for path in (ROOT / "edgekit" / name).rglob("*.py")),
]  # fmt: skip
TEXT = "a text of a few words\n" * 200
YARN = {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}}

# Target, changes of config.json, arguments, flags, and the mentions in either error.
MISTAKES: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[str], list[str], list[str]]] = {
    "a text that the recipe does not take": (
        "cpu", {}, {"recipe": "rtn", "calibrate_on": "TEXT"}, ["--recipe", "rtn", "--calibration", "TEXT"],
        ["`recipe='rtn'`", "`fit_bytes`"], ["--recipe rtn", "--fit"],
    ),
    "bits that do not exist": (
        "cpu", {}, {"head_bits": 5}, ["--head-bits", "5"], ["`head_bits=5`"], ["--head-bits 5"],
    ),
    "bits without quantization": (
        "cpu", {}, {"recipe": "none", "head_bits": 8}, ["--recipe", "none", "--head-bits", "8"],
        ["`recipe='none'`"], ["--recipe none"],
    ),
    "bits of a tied head": (
        "cpu", {}, {"head_bits": 4, "embedding_bits": 8}, ["--head-bits", "4", "--embedding-bits", "8"],
        ["`embedding_bits`"], ["--embedding-bits"],
    ),
    "a size with the codes of the checkpoint": (
        "cpu", {}, {"fit_bytes": 1000}, ["--fit", "1000"],
        ["`fit_bytes`", "`recipe='auto'`", "`recipe='gptq'`"], ["--fit", "--recipe auto", "--recipe gptq"],
    ),
    "a size that is too small": (
        "cpu", {}, {"recipe": "rtn", "fit_bytes": 1000}, ["--recipe", "rtn", "--fit", "1000"],
        ["`fit_bytes`", "`group_size`", "`head_bits`"], ["--fit", "--group-size", "--head-bits"],
    ),
    "a context that is too long": (
        "cpu", {}, {"context_length": 1 << 20}, ["--context", str(1 << 20)],
        ["`context_length`", "`yarn`"], ["--context", "--yarn"],
    ),
    "a context that is stretched already": ("cpu", YARN, {"yarn": 2.0}, ["--yarn", "2"], ["`yarn`"], ["--yarn"]),
    "a revision of a folder": ("cpu", {}, {"revision": "x"}, ["--revision", "x"], ["`revision`"], ["--revision"]),
    "a JetPack that is none": ("cpu", {}, {"jetpack": "7.2"}, ["--jetpack", "7.2"], ["`jetpack`"], ["--jetpack"]),
    "a dialect that is none": ("cpu", {}, {"dialect": "native"}, ["--dialect", "native"], ["`dialect`"], ["--dialect"]),
    "a target that Optimum does not write for": (
        "m2", {}, {"exporter": "optimum"}, ["--exporter", "optimum"], ["`exporter='optimum'`"], ["--exporter optimum"],
    ),
    "YaRN with Optimum": (
        "cpu", {}, {"exporter": "optimum", "yarn": 2.0}, ["--exporter", "optimum", "--yarn", "2"],
        ["`yarn`"], ["--yarn"],
    ),
    "a measurement with Optimum": (
        "cpu", {}, {"exporter": "optimum", "evaluate_on": "TEXT"}, ["--exporter", "optimum", "--eval", "TEXT"],
        ["`evaluate_on`"], ["--eval"],
    ),
    "calibration with Optimum": (
        "cpu", {}, {"exporter": "optimum", "recipe": "gptq"}, ["--exporter", "optimum", "--recipe", "gptq"],
        ["`recipe='rtn'`"], ["--recipe rtn"],
    ),
    "a key that edgekit does not read": (
        "cpu", {"novel key": 3}, {}, [], ["`ignore_keys=['novel key']`"], ["--ignore-key 'novel key'"],
    ),
    "an architecture that edgekit does not support": (
        "cpu", {"model_type": "novel"}, {}, [], ["`exporter='optimum'`"], ["--exporter optimum"],
    ),
    "a sliding window on MLX": (
        "m2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, {}, [],
        ["`context_length=64`"], ["--context 64"],
    ),
    "a context that does not fit": (
        "orin-nano-8", {"max_position_embeddings": 1 << 22}, {"context_length": 1 << 22}, ["--context", str(1 << 22)],
        ["`context_length=", "`allow_oversize=True`"], ["--context ", "--allow-oversize"],
    ),
}  # fmt: skip


def python_error(*arguments: object, **options: Any) -> str:
    with pytest.raises(EdgekitError) as caught:
        edgekit.export_model(*arguments, **options)  # type: ignore[arg-type]  # as a user calls it
    return f"{caught.value.message}\n{caught.value.hint}"


def check(in_python: str, on_the_command_line: str, arguments: list[str], flags: list[str]) -> None:
    for mention in arguments:
        assert mention in in_python
    for flag in flags:
        assert flag in on_the_command_line
    assert not re.search(r"(?<![\w-])--?[a-z]", in_python), in_python
    assert not re.search(r"`[a-z]+_[a-z_]+[`=]", on_the_command_line), on_the_command_line


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained_in_the_words_of_either_surface(mistake: str, tmp_path: Path) -> None:
    target, changes, options, words, arguments, flags = MISTAKES[mistake]
    checkpoint = tiny_checkpoint(tmp_path / "model", tied="tied" in mistake)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | changes))
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    options = {name: str(text) if value == "TEXT" else value for name, value in options.items()}
    words = [str(text) if word == "TEXT" else word for word in words]
    done = run("export", checkpoint, "-t", target, "-o", tmp_path / "out", *words, check=False)
    assert done.returncode in {1, 2}
    check(python_error(checkpoint, target, tmp_path / "out", **options), done.stderr, arguments, flags)


def test_an_output_that_is_there_is_explained_in_the_words_of_either_surface(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    for options, words in (({}, ()), ({"force": True}, ("--force",))):
        done = run("export", "smollm2-135m-instruct", "-t", "cpu", "-o", tmp_path, *words, check=False)
        told = python_error("smollm2-135m-instruct", "cpu", tmp_path, **options)
        check(told, done.stderr, ["`output`", "`force=True`"], ["--output", "--force"])


def test_a_model_that_is_unknown_is_explained_in_the_words_of_either_surface(tmp_path: Path) -> None:
    done = run("export", "no/such/model", "-t", "cpu", "-o", tmp_path / "out", check=False)
    check(python_error("no/such/model", "cpu", tmp_path / "out"), done.stderr, ["`model` is"], ["MODEL is"])


def test_advice_on_the_command_line_names_flags(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 22}))
    arguments = ("plan", checkpoint, "-t", "orin-nano-8", "--context", str(1 << 21), "--parallel", "2")
    advice = json.loads(run(*arguments, "--json", check=False).stdout)["advice"]
    assert re.fullmatch(r"--context \d+ fits with --parallel 2", advice[0])
    assert advice[0] in run(*arguments, check=False).stdout


def test_a_size_is_recommended_in_mebibytes_that_are_not_more() -> None:
    flags = flags_of(export)
    assert spell_options(option("fit_bytes", (7 << 20) - 1), flags) == "--fit 6.9MiB"
    assert spell_options(option("fit_bytes", 900 << 20), flags) == "--fit 900.0MiB"


def test_an_option_that_a_command_lacks_is_spelled_as_an_argument() -> None:
    assert spell_options(f"leave out {option('revision')}", flags_of(click.Command("info"))) == "leave out `revision`"


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """The string constants of a module, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


def test_the_core_names_no_flag() -> None:
    commands = (build, export, plan, run_verb, serve)
    flags = {flag for command in commands for item in command.params for flag in item.opts if flag.startswith("--")}
    assert {"--fit", "--parallel", "--allow-oversize"} <= flags
    pattern = re.compile(rf"(?<![\w-])({'|'.join(sorted(flags, key=len, reverse=True))})(?![\w-])")
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}" for path in CORE for line, text in strings(path)
        # A command to run is the same from everywhere; pip's and the compiler's options are arguments of their own.
        if pattern.search(text) and not re.search("edgekit (build|export) ", text) and text.strip() not in flags
    ]  # fmt: skip
    assert not found, "\n".join(found)


def test_every_option_that_the_core_mentions_is_an_argument_and_a_flag() -> None:
    functions = (edgekit.export_model, edgekit.load)
    arguments = {name for function in functions for name in inspect.signature(function).parameters}
    arguments |= {"parallel", "segments"}  # of `edgekit plan` and `edgekit build` alone
    parameters = {item.name for command in (build, export, plan, run_verb, serve) for item in command.params}
    mentioned = set()
    for path in CORE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "option":
                mentioned.add(node.args[0].value if isinstance(node.args[0], ast.Constant) else None)
    mentioned.discard(None)  # a name from a table of names
    assert {"output", "fit_bytes", "ignore_keys"} <= mentioned
    assert mentioned <= arguments
    assert mentioned <= parameters
