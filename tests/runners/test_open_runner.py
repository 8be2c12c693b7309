"""Selection of the runner for plain CPUs: the CPU kernels, or onnxruntime with the reason in the log."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from edgekit.errors import BundleError, ConfigError
from edgekit.export.quantization.grid import Grid, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk, Runner
from edgekit.runners.cpu.build import find_compiler, refresh
from edgekit.runners.cpu.onnx_reader.match_model import describe
from edgekit.runners.cpu.runner import CpuRunner
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from edgekit.runners.portable import PortableRunner
from tests.models import TensorWeights, tiny_checkpoint, tiny_decoder, tiny_tensors
from tests.ort_version import native_runs


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    refresh(find_compiler())


def export(folder: Path, *, accuracy_level: Literal[1, 4] = 4) -> Path:
    source = tiny_checkpoint(folder / "hf")
    weights = TensorWeights(tiny_tensors(source), lambda _, w: lsq(w, Grid(4, 32, Offset.ZERO_POINT, np.float16)))
    (folder / "onnx").mkdir()
    writer = OnnxWriter("onnxruntime", accuracy_level=accuracy_level)
    writer(tiny_decoder(source), weights, folder / "onnx", lambda _: None)
    return folder / "onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("rounded"))


@pytest.fixture(scope="module")
def unsupported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that the kernels do not support: they always quantize activations."""
    return export(tmp_path_factory.mktemp("floats"), accuracy_level=1)


def opened(folder: Path) -> Runner:
    return open_runner(folder, "onnx", "onnxruntime", context_length=64, sequence_slots=2, threads=1)


def outcome(folder: Path, before: str, dialect: str = "onnxruntime", **env: str) -> str:
    """Open a bundle in a new process, after running the code `before`; return its output."""
    program = f"""
import logging, sys
{before}
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from pathlib import Path
from edgekit.errors import EdgekitError
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk
try:
    runner = open_runner(Path(sys.argv[1]), "onnx", "{dialect}", context_length=64, threads=1)
    print(type(runner).__name__, runner.backend.runtime, runner.run([Chunk(0, [1, 2, 3])])[0].shape)
except EdgekitError as error:
    print(error.code, error.message, error.hint, sep=" | ")
print("onnxruntime" if sys.modules.get("onnxruntime") else "no onnxruntime", "was imported")
"""
    command, env = [sys.executable, "-c", program, str(folder)], {**os.environ, **env}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=120).stdout


def test_the_kernels_run_a_bundle_and_onnxruntime_is_not_even_imported(folder: Path) -> None:
    for before in ("", "sys.modules['onnxruntime'] = None"):
        lines = outcome(folder, before).splitlines()
        assert lines[0].startswith("running on the CPU kernels, ")
        assert lines[1:] == ["CpuRunner cpu (1, 512)", "no onnxruntime was imported"]


def test_onnxruntime_runs_it_where_the_kernels_are_switched_off(folder: Path) -> None:
    assert outcome(folder, "", EDGEKIT_CPU_KERNELS="off").splitlines() == [
        f"running on onnxruntime {version('onnxruntime')} on the CPU; not on cpu: switched off by $EDGEKIT_CPU_KERNELS",
        "OnnxRuntimeRunner onnxruntime (1, 512)",
        "onnxruntime was imported",
    ]


def test_where_neither_can_the_error_says_why_and_what_to_install(folder: Path, unsupported: Path) -> None:
    absent = "sys.modules['onnxruntime'] = None"
    for path, env, why in (
        (folder, {"EDGEKIT_CPU_KERNELS": "off"}, "switched off by $EDGEKIT_CPU_KERNELS"),
        (unsupported, {}, "the kernels cannot run this graph: "),
    ):
        code, message, hint = outcome(path, absent, **env).splitlines()[0].split(" | ")
        assert code == "missing_extra"
        assert message.startswith(f"nothing here runs this bundle: the CPU kernels: {why}")
        assert "onnxruntime on the CPU: this needs `onnxruntime`, which is not installed" in message
        assert hint.startswith("pip install 'edgekit-llm[onnxruntime]'")


def test_onnxruntime_runs_a_graph_that_the_kernels_do_not_support_and_the_log_says_why(
    unsupported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "edgekit.runners"):
        runner = opened(unsupported)
    assert isinstance(runner, OnnxRuntimeRunner)
    assert str(runner.backend) == "onnxruntime"
    assert "has 1 for its `accuracy_level`" in caplog.text


@pytest.fixture(scope="module")
def for_tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each dialect with symmetric INT4 weights, and one with floats, which the kernels do not support."""
    place = tmp_path_factory.mktemp("tensorrt")
    source = tiny_checkpoint(place / "hf", intermediate=256, tied=True)
    int4 = TensorWeights(
        tiny_tensors(source), lambda _, weight: lsq(weight, Grid(4, 128, Offset.SYMMETRIC, np.float16))
    )
    for name, writer, weights in (
        ("portable", OnnxWriter("portable"), int4),
        ("native", OnnxWriter("native"), int4),
        ("floats", OnnxWriter("portable"), TensorWeights(tiny_tensors(source))),
    ):
        (place / name).mkdir()
        writer(tiny_decoder(source), weights, place / name, lambda _: None)
    return place


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_the_kernels_run_graphs_for_tensorrt_and_onnxruntime_is_not_even_imported(
    dialect: str, for_tensorrt: Path
) -> None:
    lines = outcome(for_tensorrt / dialect, "sys.modules['onnxruntime'] = None", dialect=dialect).splitlines()
    assert lines[0].startswith("running on the CPU kernels, ")
    assert lines[1:] == ["CpuRunner cpu (1, 512)", "no onnxruntime was imported"]


@pytest.mark.parametrize("dialect", ["portable", pytest.param("native", marks=native_runs)])
def test_the_kernels_compute_graphs_for_tensorrt_as_onnxruntime_does_but_for_rounded_activations(
    dialect: str, for_tensorrt: Path
) -> None:
    tokens = list(range(3, 63))
    logits = {}
    for runner in ("auto", "onnxruntime"):
        folder = for_tensorrt / dialect
        opened = open_runner(folder, "onnx", dialect, context_length=64, threads=1, runner=runner)
        assert isinstance(opened, CpuRunner) == (runner == "auto")
        logits[runner] = np.concatenate([opened.run([Chunk(0, part, "all")])[0].copy()
                                         for part in (tokens[:50], tokens[50:59], tokens[59:])])  # fmt: skip
        opened.close()
    error = np.sqrt(np.mean((logits["auto"] - logits["onnxruntime"]) ** 2)) / logits["onnxruntime"].std()
    # As in `test_quantizing_activations_costs_little`.
    assert 1e-3 < error < 0.04


def test_a_graph_for_tensorrt_that_the_kernels_do_not_support_runs_on_onnxruntime_and_the_log_says_why(
    for_tensorrt: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "edgekit.runners"):
        runner = open_runner(for_tensorrt / "floats", "onnx", "portable", context_length=64, threads=1)
    assert isinstance(runner, PortableRunner)
    assert "on the CPU; not on tensorrt: " in caplog.text
    assert ", cuda: " in caplog.text
    assert ", cpu: the kernels cannot run this graph" in caplog.text
    assert "is not the expected DequantizeLinear" in caplog.text


def test_a_graph_in_another_dialect_than_the_manifest_says_is_refused(for_tensorrt: Path, folder: Path) -> None:
    for path, dialect in ((for_tensorrt / "portable", "native"), (folder, "portable"), (for_tensorrt / "native", "")):
        with pytest.raises(BundleError, match="dialect"):
            open_runner(path, "onnx", dialect, context_length=64, threads=1)


def test_a_selected_variant_is_used_and_an_unavailable_one_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CPU_KERNELS", "plain")
    runner = opened(folder)
    assert isinstance(runner, CpuRunner)
    assert str(runner.backend) == "cpu (plain)"
    assert (runner.limits.context_length, runner.limits.sequence_slots) == (64, 2)
    # Half of onnxruntime's: keys and values of 3 layers with 2 heads of 32, in float16.
    assert runner.limits.kv_bytes_per_token == 3 * 2 * 2 * 32 * 2
    monkeypatch.setenv("EDGEKIT_CPU_KERNELS", "sse9")
    with pytest.raises(ConfigError, match="sse9"):
        opened(folder)


def test_a_damaged_graph_does_not_fall_back_to_another_runner(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x00not a graph")
    with pytest.raises(BundleError):
        opened(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_loaded_model_does_not_keep_its_file_mapped(folder: Path) -> None:
    runner = opened(folder)
    assert str(folder / "model.onnx.data") not in Path("/proc/self/maps").read_text()
    # It still runs: the weights were copied.
    assert np.isfinite(runner.run([Chunk(0, list(range(40)))])[0]).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_released_pages_are_read_again_on_access(folder: Path) -> None:
    model = describe(folder)
    before = model.embedding.codes.copy()
    assert resident(folder / "model.onnx.data") > 0
    model.release_pages()
    assert resident(folder / "model.onnx.data") == 0
    np.testing.assert_array_equal(model.embedding.codes, before)


def resident(path: Path) -> int:
    """KiB of a file's mapping that are in this process's memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    mapped = next(line for line in lines if line.endswith(str(path)))
    assert mapped.split()[1].startswith("r-")
    return int(next(line for line in lines if line.startswith("Rss:")).split()[1])
