"""A runner that loads a bundle for the first time must pass its self-test; that it did is remembered."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import edgekit
from edgekit.bundle.bundle import open_bundle
from edgekit.bundle.self_test import SELF_TEST_FILE
from edgekit.config import GenerationConfig
from edgekit.errors import RunnerError
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.progress import silent
from edgekit.generation.startup import open_model
from edgekit.runners.cpu.library import VARIABLE
from edgekit.target import load_target
from tests.conftest import edgekit as command
from tests.generation.bundles import seal, tiny_bundle
from tests.variants import variant

CONFIG = GenerationConfig(threads=1)
RAN = "self-test passed by"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("self-test")
    source = variant("qwen2", folder / "model")
    export_bundle(str(source), load_target("cpu"), folder / "bundle", ExportOptions(), silent)
    return folder / "bundle"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_STATE", str(tmp_path / "state"))
    return tmp_path / "state" / "self-tests.json"


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "bundle")
    return tmp_path / "bundle"


def another_expectation(bundle: Path) -> None:
    """Expect the logits of other tokens: as if the runner computed something else."""
    path = bundle / SELF_TEST_FILE
    data = json.loads(path.read_text())
    for row in data["rows"]:
        row["ids"] = [(token + 1) % 512 for token in row["ids"]]
    path.write_text(json.dumps(data))
    seal(bundle)


def loads(bundle: Path, caplog: pytest.LogCaptureFixture, config: GenerationConfig = CONFIG) -> bool:
    """Load a bundle; return whether that ran its self-test."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="edgekit"):
        open_model(open_bundle(bundle), config).close()
    return RAN in caplog.text


def test_it_runs_once(bundle: Path, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert loads(bundle, caplog)
    assert "error of the logits" in caplog.text
    assert len(json.loads(state.read_text())) == 1
    assert not loads(bundle, caplog)


def test_it_runs_again_where_anything_that_computes_is_another(
    bundle: Path, state: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loads(bundle, caplog)
    # Steps over several slots take other paths through a runner.
    assert loads(bundle, caplog, replace(CONFIG, parallel=1))
    monkeypatch.setenv(VARIABLE, "off")
    assert loads(bundle, caplog)
    assert not loads(bundle, caplog)
    monkeypatch.setattr("edgekit.generation.prefix.keys.__version__", "99")
    assert loads(bundle, caplog)
    assert len(json.loads(state.read_text())) == 4


def test_another_bundle_at_the_same_place_is_tested(
    bundle: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert loads(bundle, caplog)
    (bundle / "README").write_text("another")
    seal(bundle)
    assert loads(bundle, caplog)
    assert state.exists()


def test_a_runner_that_computes_something_else_is_refused_with_the_figures(bundle: Path, state: Path) -> None:
    another_expectation(bundle)
    for _ in range(2):
        with pytest.raises(
            RunnerError, match=r"wrong logits with this bundle: error of the logits \d+\.\d+%"
        ) as caught:
            open_model(open_bundle(bundle), GenerationConfig(threads=1))
        assert caught.value.code == "self_test_failed"
    assert not state.exists()
    with pytest.raises(RunnerError, match="wrong logits"):
        edgekit.load(bundle)


def test_a_draft_model_is_tested_too(sound: Path, bundle: Path, state: Path) -> None:
    another_expectation(bundle)
    with pytest.raises(RunnerError, match="wrong logits"):
        open_model(open_bundle(sound), GenerationConfig(threads=1, draft_bundle=bundle))
    assert len(json.loads(state.read_text())) == 1


def test_a_bundle_of_an_older_version_loads_without_one(
    tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not loads(tiny_bundle(tmp_path / "old", "onnx"), caplog)
    assert "has no self-test" in caplog.text
    assert not state.exists()


@pytest.mark.parametrize("text", ["", "{", "{}", "7", '"x"', "[[]]", "\x00"])
def test_a_damaged_memory_of_them_counts_as_none(
    text: str, bundle: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state.parent.mkdir()
    state.write_text(text)
    assert loads(bundle, caplog)
    assert not loads(bundle, caplog)


def test_where_nothing_can_be_remembered_it_runs_at_every_load(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEKIT_STATE", str(tmp_path / "file" / "state"))
    assert loads(bundle, caplog)
    assert "cannot remember" in caplog.text
    assert loads(bundle, caplog)


def test_a_context_shorter_than_the_prompt_loads(bundle: Path, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not loads(bundle, caplog, replace(CONFIG, context_length=5))
    assert "too short for the self-test" in caplog.text
    assert not state.exists()
    assert loads(bundle, caplog, replace(CONFIG, context_length=12))
    assert not state.exists(), "a part of it counts for all"
    assert loads(bundle, caplog)
    assert state.exists()


def test_verify_run_prints_the_figures_of_every_runner(bundle: Path) -> None:
    done = command("verify", bundle, "--run")
    passed = [line.split("  ")[0] for line in done.stdout.splitlines() if " passed " in line]
    assert [name.partition(" (")[0] for name in passed] == ["the CPU kernels", "onnxruntime on the CPU"]
    found = json.loads(command("verify", bundle, "--run", "--json").stdout)["run"]
    assert [result["name"] for result in found] == ["the CPU kernels", "onnxruntime on the CPU"]
    assert all(result["ok"] and 0 < result["error"] < 0.1 and result["rows"] == 12 for result in found)


def test_verify_run_fails_with_the_figures_of_every_runner(bundle: Path) -> None:
    another_expectation(bundle)
    done = command("verify", bundle, "--run", check=False)
    assert done.returncode == 1
    assert done.stdout.count(" FAILED ") == 2
    assert "computed wrong logits with" in done.stderr
    done = command("verify", bundle, "--run", "--json", check=False)
    assert done.returncode == 1
    assert [result["ok"] for result in json.loads(done.stdout)["run"]] == [False, False]


def test_verify_run_says_which_runner_could_not_run(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    done = command("verify", bundle, "--run")
    assert "not run by the CPU kernels: switched off by" in done.stdout
    assert re.search(r"^onnxruntime on the CPU +passed ", done.stdout, re.MULTILINE)


def test_verify_run_says_that_an_older_bundle_has_no_self_test(tmp_path: Path) -> None:
    done = command("verify", tiny_bundle(tmp_path, "onnx"), "--run", check=False)
    assert done.returncode == 1
    assert "has no self-test: it was exported by an older version" in done.stderr.replace("\n", " ")


@pytest.mark.parametrize("target", ["m2", "orin"])
def test_verify_run_of_a_bundle_for_another_machine_runs_here(target: str, tmp_path: Path) -> None:
    if target == "m2":
        pytest.importorskip("mlx_lm")
    source = variant("llama", tmp_path / "model")
    export_bundle(str(source), load_target(target), tmp_path / "bundle", ExportOptions(), silent)
    results = json.loads(command("verify", tmp_path / "bundle", "--run", "--json").stdout)["run"]
    errors = {result["name"]: result["error"] for result in results if "error" in result}
    assert all(result["ok"] for result in results if "error" in result)
    if target == "m2":
        assert errors["MLX"] < 0.005
    else:
        assert errors["onnxruntime on the CPU"] < 0.005 < errors["the CPU kernels"]
