"""`edgekit build` tests the engine on the GPU that it is for, over doubles of TensorRT, its builder and the driver."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgekit.cli import build as command
from edgekit.errors import EdgekitError
from edgekit.generation import engine_wanted
from edgekit.generation.engine_wanted import this_target
from edgekit.runners.cuda.driver import open_device
from tests.runners.tensorrt.builder_double import CAPABILITY, BuilderDouble, export_two, machine_with_tensorrt


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_two(tmp_path_factory.mktemp("exported"))


def have_gpu(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    machine = replace(this_target(), compute_capability=capability)
    monkeypatch.setattr(engine_wanted, "this_target", lambda: machine)


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BuilderDouble]:
    have_gpu(monkeypatch, CAPABILITY)
    with machine_with_tensorrt(tmp_path) as (found, _):
        found.go_on.set()
        yield found


def build(bundle: Path, *options: str) -> Result:
    return CliRunner().invoke(command.build, [str(bundle), "--context", "128", *options])


def engines(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache" / "engines").iterdir() if path.is_dir()]


def test_the_figures_are_shown(exported: Path, builder: BuilderDouble, tmp_path: Path) -> None:
    done = build(exported / "bundle", "--json")
    assert done.exception is None, done.output
    assert json.loads(done.stdout)["self_test"]["ok"]
    assert len(engines(tmp_path)) == 1
    assert len(builder.builds) == 1


def test_an_engine_for_less_than_the_self_test_is_not_said_to_have_passed(
    exported: Path, builder: BuilderDouble
) -> None:
    del builder
    done = build(exported / "bundle", "--context", "4", "--json")
    assert done.exception is None, done.output
    assert json.loads(done.stdout)["self_test"] is None
    assert "too short for the self-test" in done.stderr


def test_an_engine_that_computes_something_else_is_refused_and_removed(
    exported: Path, builder: BuilderDouble, tmp_path: Path
) -> None:
    builder.graph_of = exported / "other"
    done = build(exported / "bundle")
    assert isinstance(done.exception, EdgekitError)
    assert done.exception.code == "self_test_failed"
    assert engines(tmp_path) == []


def test_without_a_driver_and_for_another_gpu_it_is_not_tested(
    exported: Path, builder: BuilderDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del builder
    bundle = shutil.copytree(exported / "bundle", tmp_path / "bundle")
    monkeypatch.setattr("edgekit.runners.tensorrt.open.open_device", open_device)
    done = build(bundle, "--json")
    assert done.exception is None, done.output
    assert json.loads(done.stdout)["self_test"] is None
    assert "the engine is not tested: " in done.stderr
    have_gpu(monkeypatch, "8.9")
    done = build(bundle, "--json")
    assert json.loads(done.stdout)["self_test"] is None
    assert "not tested" not in done.stderr
