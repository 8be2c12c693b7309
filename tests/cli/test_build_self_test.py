"""`edgekit build` over doubles of TensorRT, its builder and the driver: the engine is tested on the GPU it is for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner, Result

from edgekit.bundle.bundle import open_bundle
from edgekit.cli import build as command
from edgekit.config import GenerationConfig
from edgekit.errors import EdgekitError
from edgekit.generation import engine_wanted
from edgekit.generation.engine_wanted import this_target
from edgekit.generation.first_build import plan_first_build
from edgekit.machine import probe
from edgekit.runners.cuda.driver import open_device
from edgekit.runners.tensorrt import build as building
from edgekit.runners.tensorrt.build_record import BuildRecords
from edgekit.runners.tensorrt.graph_file import read_graph_file
from edgekit.runners.tensorrt.prepare import plan_build, prepare_engine
from edgekit.runners.tensorrt.shapes import BuildLimits
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
    with machine_with_tensorrt(tmp_path, monkeypatch) as (found, _):
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
    exported: Path, builder: BuilderDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one of a bundle that was exported for a few tokens."""
    del builder
    bundle = open_bundle(exported / "bundle")
    plan = plan_build(bundle, compute_capability=CAPABILITY, limits=BuildLimits(context_length=4))
    assert command.self_test_engine(bundle, prepare_engine(plan).stored) is None
    assert "too short for the self-test" in capsys.readouterr().err


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


def test_a_build_asks_for_the_machine_once_and_reads_the_graph_once(
    exported: Path, builder: BuilderDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(exported / "bundle", tmp_path / "bundle")
    asked, read = Mock(side_effect=probe), Mock(side_effect=read_graph_file)
    monkeypatch.setattr(engine_wanted, "this_target", this_target)
    monkeypatch.setattr(engine_wanted, "probe", asked)
    monkeypatch.setattr(building, "read_graph_file", read)
    assert build(bundle).exception is None
    assert (len(builder.builds), asked.call_count, read.call_count) == (1, 1, 1)
    # The daemon's.
    here = replace(this_target(), compute_capability=CAPABILITY)
    config = GenerationConfig(context_length=256, ignore_compatible=True)
    asked.reset_mock()
    first = plan_first_build(open_bundle(bundle), config, here, BuildRecords(None))
    assert first is not None
    prepare_engine(first.plan, memory_bytes=first.memory_bytes)
    assert (len(builder.builds), asked.call_count, read.call_count) == (2, 0, 2)


def test_the_engine_of_a_source_is_taken_although_another_one_that_fits_is_there(
    exported: Path, builder: BuilderDouble, tmp_path: Path
) -> None:
    bundle, source = shutil.copytree(exported / "bundle", tmp_path / "bundle"), tmp_path / "source"
    assert build(bundle).exception is None
    assert build(bundle, "--context", "64", "--output", str(source)).exception is None
    for fetched in (True, False):
        done = CliRunner().invoke(command.build, [str(bundle), "--from", str(source), "--json"])
        assert done.exception is None, done.output
        said = json.loads(done.stdout)
        assert (said["engine"]["context_length"], said["build"], said["fetched"]) == (64, None, fetched)
    # The bundle's own was replaced.
    assert engines(tmp_path) == [Path(said["path"])]
    assert len(builder.builds) == 2
