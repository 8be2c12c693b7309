from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import psutil
import pytest

from edgekit.errors import BundleError, ConfigError, RunnerError
from edgekit.export.optimum.int4_pass import quantize_graph
from edgekit.export.optimum.source import Source
from edgekit.export.quantization.grid import Grid, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.recipes.recipe import recipe_for
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk, Runner
from edgekit.runners.native import NativeRunner
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from edgekit.runners.optimum import OptimumRunner
from edgekit.runners.portable import PortableRunner
from edgekit.target import load_target
from tests.export.optimum.graphs import float_graph
from tests.models import TensorWeights, tiny_checkpoint, tiny_decoder, tiny_tensors
from tests.ort_version import native_runs
from tests.reference import forward
from tests.runners.tensorrt.engines import build, open_double

FloatArray = npt.NDArray[np.float32]
Open = Callable[..., Runner]

TOKENS = [int(token) for token in np.random.default_rng(7).integers(0, 512, 40)]


def export(folder: Path, writer: OnnxWriter, max_position: int = 256) -> Path:
    source = tiny_checkpoint(folder / "hf", max_position=max_position)
    offset = Offset.ZERO_POINT if writer.dialect == "onnxruntime" else Offset.SYMMETRIC
    weights = TensorWeights(tiny_tensors(source), lambda _, w: lsq(w, Grid(4, 32, offset, np.float16)))
    (folder / "onnx").mkdir()
    writer(tiny_decoder(source), weights, folder / "onnx", lambda _: None)
    return folder / "onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("fused"), OnnxWriter("onnxruntime", accuracy_level=1))


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("portable"), OnnxWriter("portable", dtype="float32"))


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("native"), OnnxWriter("native", dtype="float32"))


@pytest.fixture(scope="module")
def optimum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimum")
    graph, recipe = float_graph("qwen2"), recipe_for(load_target("cpu"), "lsq", None)
    quantize_graph(Source(graph.folder), folder, recipe, context_length=graph.context_length, accuracy_level=1)
    return folder


@pytest.fixture(
    params=[
        "onnxruntime",
        "portable",
        pytest.param("native", marks=native_runs),
        pytest.param("optimum", marks=pytest.mark.optimum),
        "tensorrt portable",
        pytest.param("tensorrt native", marks=native_runs),
    ]
)
def opened(request: pytest.FixtureRequest, folder: Path, portable: Path, native: Path) -> Open:
    """All runners of graphs fulfil the same contract; TensorRT's runs on doubles."""
    if request.param.startswith("tensorrt"):
        return double_of(portable if "portable" in request.param else native)
    if request.param == "optimum":
        path = request.getfixturevalue("optimum")
        return lambda **options: OptimumRunner(path, **({"threads": 1} | options))
    if request.param == "portable":
        return lambda **options: PortableRunner(portable, **({"threads": 1} | options))
    if request.param == "native":
        return lambda **options: NativeRunner(native, **({"threads": 1} | options))
    return lambda **options: OnnxRuntimeRunner(folder, **({"threads": 1} | options))


def double_of(folder: Path) -> Open:
    # Two segments.
    engines = build(folder / "model.onnx", chunk=256, segments=2)

    def open_engines(*, threads: int = 1, **options: Any) -> Runner:  # noqa: ARG001 - those of the CPU
        return open_double(engines, **options).runner

    return open_engines


def everything(runner: Runner, chunk_sizes: list[int], slot: int = 0) -> FloatArray:
    done, got = 0, []
    for count in chunk_sizes:
        got.append(runner.run([Chunk(slot, TOKENS[done : done + count], "all")])[0].copy())
        done += count
    return np.concatenate(got)


@pytest.mark.parametrize("chunk_sizes", [[1] * 40, [13, 13, 13, 1], [32, 1, 1, 6]])
def test_a_prompt_in_chunks_gives_the_logits_of_a_single_chunk(opened: Open, chunk_sizes: list[int]) -> None:
    np.testing.assert_allclose(everything(opened(), chunk_sizes), everything(opened(), [40]), atol=1e-4)


def test_last_gives_the_last_row_of_all_and_none_gives_no_row(opened: Open) -> None:
    full = everything(opened(), [40])
    runner = opened()
    assert runner.run([Chunk(0, TOKENS[:20], "none")])[0].shape == (0, 512)
    last = runner.run([Chunk(0, TOKENS[20:], "last")])[0]
    assert last.shape == (1, 512)
    assert last.dtype == np.float32
    np.testing.assert_allclose(last[0], full[-1], atol=1e-4)
    assert runner.run([Chunk(0, TOKENS[:1], "none")])[0].shape == (0, 512)


def test_the_same_tokens_give_bit_identical_logits_in_every_run_and_every_session(opened: Open) -> None:
    first, again = opened(), opened()
    one = everything(first, [20, 1, 1, 18])
    first.truncate(0, 0)
    np.testing.assert_array_equal(everything(first, [20, 1, 1, 18]), one)
    np.testing.assert_array_equal(everything(again, [20, 1, 1, 18]), one)


def test_what_was_truncated_leaves_no_trace(opened: Open) -> None:
    runner = opened()
    expected = everything(runner, [40])
    runner.truncate(0, 10)
    runner.run([Chunk(0, [3] * 50)])
    runner.truncate(0, 10)
    assert runner.length(0) == 10
    np.testing.assert_allclose(runner.run([Chunk(0, TOKENS[10:], "all")])[0], expected[10:], atol=1e-4)
    with pytest.raises(RunnerError, match="holds 40 tokens"):
        runner.truncate(0, 41)


def test_slots_do_not_affect_each_other(opened: Open) -> None:
    runner = opened(sequence_slots=3)
    alone = everything(opened(), [40])
    runner.run([Chunk(0, TOKENS[5:30]), Chunk(2, TOKENS[:7], "none")])
    rows = runner.run([Chunk(1, TOKENS[:39], "all"), Chunk(0, TOKENS[:1])])
    np.testing.assert_allclose(rows[0], alone[:39], atol=1e-4)
    final = runner.run([Chunk(slot, TOKENS[39:]) for slot in range(3)])
    np.testing.assert_allclose(final[1][0], alone[39], atol=1e-4)
    assert [runner.length(slot) for slot in range(3)] == [27, 40, 8]
    assert np.abs(final[0] - final[1]).max() > 0.01


def test_one_slot_cannot_take_two_chunks_in_one_step(opened: Open) -> None:
    runner = opened()
    with pytest.raises(RunnerError, match="one chunk per sequence slot"):
        runner.run([Chunk(0, [1]), Chunk(0, [2])])
    assert runner.length(0) == 0


def test_a_chunk_past_the_context_is_refused_before_any_cache_is_touched(opened: Open) -> None:
    runner = opened(context_length=48, sequence_slots=2)
    runner.run([Chunk(0, TOKENS)])
    before = runner.read_kv(0, 0, 40)
    with pytest.raises(RunnerError, match=r"40 \+ 9 tokens do not fit the context of 48") as caught:
        runner.run([Chunk(1, TOKENS[:5]), Chunk(0, TOKENS[:9])])
    assert caught.value.code == "context_length_exceeded"
    assert (runner.length(0), runner.length(1)) == (40, 0)
    assert runner.read_kv(0, 0, 40) == before
    assert runner.run([Chunk(0, TOKENS[:8])])[0].shape == (1, 512)


def test_a_step_that_fails_halfway_leaves_every_slot_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = OnnxRuntimeRunner(folder, sequence_slots=2, threads=1)
    expected = everything(runner, [40])
    runner.truncate(0, 10)
    real, calls = runner._session, []

    class FailsAtTheSecondPass:
        io_binding = real.io_binding

        def run_with_iobinding(self, binding: Any) -> None:
            calls.append(binding)
            if len(calls) == 2:
                raise RuntimeError("out of memory\nand a stack")
            real.run_with_iobinding(binding)

    monkeypatch.setattr(runner, "_session", FailsAtTheSecondPass())
    with pytest.raises(RunnerError, match=r"onnxruntime failed: out of memory$"):
        runner.run([Chunk(0, TOKENS[10:]), Chunk(1, TOKENS[:2])])
    assert [runner.length(slot) for slot in range(2)] == [10, 0]
    rows = runner.run([Chunk(0, TOKENS[10:], "all"), Chunk(1, TOKENS[:2])])
    np.testing.assert_allclose(rows[0], expected[10:], atol=1e-4)


@pytest.mark.parametrize("tokens", [[], [0] * 33, [512], [-1], [3, 10**9]])
def test_a_chunk_that_would_read_outside_the_model_is_refused(opened: Open, tokens: list[int]) -> None:
    runner = opened(max_chunk=32)
    with pytest.raises(RunnerError):
        runner.run([Chunk(0, tokens)])
    assert runner.length(0) == 0


def test_a_cache_that_was_read_and_written_back_continues_alike(opened: Open) -> None:
    runner = opened(sequence_slots=2)
    expected = everything(runner, [30, 10])
    data = runner.read_kv(0, 0, 30)
    assert len(data) == 30 * runner.limits.kv_bytes_per_token
    assert runner.write_kv(1, 0, runner.read_kv(0, 0, 12)) == 12
    assert runner.write_kv(1, 12, runner.read_kv(0, 12, 30)) == 30
    assert runner.read_kv(1, 0, 30) == data
    np.testing.assert_array_equal(runner.run([Chunk(1, TOKENS[30:], "all")])[0], expected[30:])


def test_kv_data_that_does_not_fit_is_refused(opened: Open) -> None:
    runner = opened(context_length=64)
    runner.run([Chunk(0, TOKENS)])
    data = runner.read_kv(0, 0, 40)
    with pytest.raises(RunnerError, match="does not follow"):
        runner.write_kv(0, 39, data)
    with pytest.raises(RunnerError, match="do not fit this runner's KV cache"):
        runner.write_kv(0, 40, data)
    with pytest.raises(RunnerError, match="do not fit this runner's KV cache"):
        runner.write_kv(0, 40, data[:-1])
    with pytest.raises(RunnerError, match="not positions"):
        runner.read_kv(0, 30, 41)
    assert runner.length(0) == 40


def test_limits_follow_the_model_and_the_options(opened: Open) -> None:
    limits = opened(context_length=100, sequence_slots=2, max_chunk=512).limits
    assert (limits.context_length, limits.sequence_slots, limits.max_chunk) == (100, 2, 100)
    # Three layers, keys and values, two heads of 32 numbers of 4 bytes.
    assert (limits.vocab_size, limits.kv_bytes_per_token) == (512, 3 * 2 * 2 * 32 * 4)
    assert opened().limits.context_length == 256
    with pytest.raises(RunnerError, match="between 1 and 256"):
        opened(context_length=257)


def test_logits_agree_with_the_reference_up_to_the_last_position_of_the_context(folder: Path) -> None:
    source = folder.parent / "hf"
    decoder = tiny_decoder(source)
    grid = Grid(4, 32, Offset.ZERO_POINT, np.float16)
    weights = TensorWeights(tiny_tensors(source), lambda _, w: lsq(w, grid)).stored(decoder)
    tokens = [int(token) for token in np.random.default_rng(2).integers(0, 512, 256)]
    runner = OnnxRuntimeRunner(folder, threads=1, max_chunk=100)
    for start in (0, 100, 200):
        last = runner.run([Chunk(0, tokens[start : start + 100])])[0]
    np.testing.assert_allclose(last[0], forward(decoder, weights.__getitem__, tokens)[-1], atol=2e-3)


def test_one_thread_and_two_threads_agree(folder: Path) -> None:
    np.testing.assert_allclose(
        everything(OnnxRuntimeRunner(folder, threads=2), [40]),
        everything(OnnxRuntimeRunner(folder, threads=1), [40]),
        atol=1e-4,
    )


def test_decoding_allocates_nothing_that_stays(folder: Path) -> None:
    runner = OnnxRuntimeRunner(folder, threads=1)
    process = psutil.Process()

    def decode() -> None:
        for _ in range(200):
            runner.run([Chunk(0, [5])])
        runner.truncate(0, 0)

    decode()
    before = process.memory_info().rss
    for _ in range(10):
        decode()
    assert process.memory_info().rss - before < 2 << 20


def test_a_long_context_takes_memory_only_as_it_fills(tmp_path: Path) -> None:
    folder = export(tmp_path, OnnxWriter("onnxruntime"), max_position=200_000)
    process = psutil.Process()
    before = process.memory_info().rss
    runner = OnnxRuntimeRunner(folder, threads=1)
    reserved = runner.limits.kv_bytes_per_token * 200_000
    runner.run([Chunk(0, TOKENS)])
    assert process.memory_info().rss - before < reserved / 2


def test_an_emptied_slot_frees_its_memory_and_a_truncated_one_keeps_it(tmp_path: Path) -> None:
    runner = OnnxRuntimeRunner(export(tmp_path, OnnxWriter("onnxruntime"), max_position=60_000), sequence_slots=2)
    data = memoryview(np.random.default_rng(0).bytes(40_000 * runner.limits.kv_bytes_per_token))
    process = psutil.Process()
    for slot in range(2):
        runner.write_kv(slot, 0, data)
    full = process.memory_info().rss
    runner.truncate(0, 5)
    assert process.memory_info().rss > full - len(data) / 2
    runner.truncate(0, 0)
    assert process.memory_info().rss < full - 0.9 * len(data)
    assert runner.read_kv(1, 0, 40_000) == data
    assert runner.write_kv(0, 0, data) == 40_000


def test_a_graph_of_another_dialect_is_not_run(folder: Path, portable: Path) -> None:
    with pytest.raises(BundleError, match="written in the `portable` dialect") as caught:
        OnnxRuntimeRunner(portable)
    assert caught.value.code == "bundle_incompatible"
    with pytest.raises(BundleError, match="written in the `onnxruntime` dialect"):
        PortableRunner(folder)


def test_an_onnxruntime_older_than_the_graph_requires_is_refused(tmp_path: Path, folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    onnx.helper.set_model_props(model, {"edgekit.dialect": "onnxruntime", "edgekit.onnxruntime": "99.1"})
    onnx.save(model, tmp_path / "model.onnx")
    shutil.copy(folder / "model.onnx.data", tmp_path)
    with pytest.raises(RunnerError, match=r"needs onnxruntime 99\.1 or later") as caught:
        OnnxRuntimeRunner(tmp_path)
    assert caught.value.hint


def test_a_graph_whose_logits_index_has_no_batch_dimension_still_runs(tmp_path: Path, folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    rows = next(value for value in model.graph.input if value.name == "logits_index")
    rows.CopyFrom(onnx.helper.make_tensor_value_info("logits_index", onnx.TensorProto.INT64, ["rows"]))
    for node in model.graph.node:
        if node.op_type == "GatherND":
            node.CopyFrom(onnx.helper.make_node("Gather", node.input, node.output, name=node.name, axis=1))
    onnx.save(model, tmp_path / "model.onnx")
    shutil.copy(folder / "model.onnx.data", tmp_path)
    old, new = (OnnxRuntimeRunner(place, threads=1) for place in (tmp_path, folder))
    np.testing.assert_array_equal(everything(old, [20, 1, 19]), everything(new, [20, 1, 19]))


def test_open_runner_forwards_slots_and_chunk_and_refuses_an_8_bit_cache(folder: Path) -> None:
    runner = open_runner(folder, "onnx", "onnxruntime", context_length=64, sequence_slots=3, max_chunk=16, threads=1)
    limits = runner.limits
    assert (limits.context_length, limits.sequence_slots, limits.max_chunk) == (64, 3, 16)
    with pytest.raises(ConfigError, match="KV cache") as caught:
        open_runner(folder, "onnx", "onnxruntime", context_length=64, kv_bits=8)
    assert caught.value.hint


def test_a_folder_without_a_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no model\.onnx"):
        OnnxRuntimeRunner(tmp_path)


def test_a_damaged_graph_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x00not a graph")
    with pytest.raises(RunnerError, match="onnxruntime cannot load") as caught:
        OnnxRuntimeRunner(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_one_line(tmp_path: Path) -> None:
    folder = export(tmp_path, OnnxWriter("onnxruntime"))
    (folder / "model.onnx.data").unlink()
    with pytest.raises(RunnerError, match="onnxruntime cannot load") as caught:
        OnnxRuntimeRunner(folder)
    assert "\n" not in str(caught.value)


def test_a_closed_runner_says_so(folder: Path) -> None:
    runner = OnnxRuntimeRunner(folder, threads=1)
    runner.close()
    with pytest.raises(RunnerError, match="closed"):
        runner.run([Chunk(0, [1])])


def test_without_onnxruntime_the_error_names_the_extra(folder: Path) -> None:
    program = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from pathlib import Path\n"
        "from edgekit.errors import EdgekitError\n"
        "from edgekit.runners.onnxruntime import OnnxRuntimeRunner\n"
        "try: OnnxRuntimeRunner(Path(sys.argv[1]))\n"
        "except EdgekitError as error: print(error.code, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "missing_extra pip install 'edgekit-llm[onnxruntime]'\n"
