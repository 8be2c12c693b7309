"""`edgekit verify --run` on one runner or all, and what it says of those that cannot run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError, RunnerError
from edgekit.runners import self_test
from edgekit.runners.cuda.driver import check_driver
from tests.conftest import Export, edgekit


@pytest.fixture(scope="module")
def bundle(export: Export) -> Path:
    return export("cpu")


@pytest.fixture(scope="module")
def for_orin(export: Export) -> Path:
    return export("orin-nano-8")


def test_all_runners_are_in_one_table_with_their_figures(bundle: Path) -> None:
    done = edgekit("verify", bundle, "--run")
    header, *lines = done.stdout.splitlines()
    assert [word for word in ("runner", "error of the logits", "KL, nats", "tokens/s") if word not in header] == []
    (kernels,) = (line for line in lines if line.startswith("the CPU kernels ("))
    (other,) = (line for line in lines if line.startswith("onnxruntime on the CPU"))
    for line in (kernels, other):
        assert "passed" in line
        assert "(at most 10%)" in line


def test_one_runner_is_named(for_orin: Path) -> None:
    results = json.loads(edgekit("verify", for_orin, "--run", "--runner", "cpu", "--json").stdout)["run"]
    assert [one["name"] for one in results] == ["the CPU kernels"]
    assert results[0]["tokens_per_s"] > 0


def test_a_runner_that_cannot_run_here_says_why_and_what_to_do(for_orin: Path) -> None:
    done = edgekit("verify", for_orin, "--run", "--runner", "tensorrt", check=False)
    assert done.returncode == 1
    reason, hint = "no engine was built", f"edgekit build {for_orin}"
    try:
        check_driver()
    except EdgekitError as error:
        reason, hint = error.message, str(error.hint)
    assert f"not run by a TensorRT engine: {reason} (hint: {hint})" in done.stdout
    assert done.stderr.splitlines()[-1] == f"hint: {hint}"


def test_a_runner_of_other_bundles_and_one_without_run_are_mistakes(bundle: Path) -> None:
    other = edgekit("verify", bundle, "--run", "--runner", "mlx", check=False)
    assert other.returncode == 2
    assert "hint: choose cpu or onnxruntime, or auto" in other.stderr
    alone = edgekit("verify", bundle, "--runner", "cpu", check=False)
    assert alone.returncode == 2
    assert alone.stderr.startswith("error: --runner is for --run\n\nhint: edgekit verify")


def test_a_step_that_fails_does_not_keep_other_runners_from_being_tested(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = self_test.self_test

    def fails_on_kernels(runner: object, expected: object) -> object:
        if "cpu" in str(runner.backend):  # type: ignore[attr-defined]
            raise RunnerError("the step failed")
        return real(runner, expected)  # type: ignore[arg-type]

    monkeypatch.setattr(self_test, "self_test", fails_on_kernels)
    done = edgekit("verify", bundle, "--run", check=False)
    assert done.returncode == 1
    assert "the CPU kernels FAILED: the step failed" in done.stdout
    assert "onnxruntime on the CPU" in done.stdout
    assert "the CPU kernels: the step failed" in done.stderr
