"""TensorRT's runner on the doubles: its bookkeeping. `tests/runners/test_onnxruntime.py` has the runners' contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import RunnerError
from edgekit.export.quantization.grid import Grid, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners.base import Chunk, Runner
from edgekit.runners.native import NativeRunner
from edgekit.runners.portable import PortableRunner
from edgekit.runners.tensorrt import graphs
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.ort_version import native_runs
from tests.runners.tensorrt.engines import Opened, build, new_driver, open_double, window_of
from tests.runners.tensorrt.tensorrt_double import ICudaEngine, IExecutionContext
from tests.variants import VARIANTS, variant

FloatArray = npt.NDArray[np.float32]
Dialect = Literal["portable", "native"]
Export = Callable[..., Path]

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 512, 300)]
BOTH = pytest.mark.parametrize("dialect", ["portable", pytest.param("native", marks=native_runs)])
CHECKERS = {"portable": PortableRunner, "native": NativeRunner}
# Of FP16; see tests/export/writers/test_onnx_portable.py.
FP16 = 3e-2


def export(
    folder: Path,
    dialect: Dialect,
    name: str = "qwen2",
    dtype: Literal["float16", "float32"] = "float32",
    **options: Any,
) -> Path:
    source = variant(name, folder / "hf", **options)
    (folder / dialect).mkdir()
    weights = TensorWeights(tiny_tensors(source), lambda _, w: lsq(w, Grid(4, 32, Offset.SYMMETRIC, np.float16)))
    OnnxWriter(dialect, dtype=dtype)(tiny_decoder(source), weights, folder / dialect, lambda _: None)
    return folder / dialect / "model.onnx"


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("long"), "portable", max_position=2048)


def in_chunks(runner: Runner, tokens: list[int], chunks: list[int], slot: int = 0) -> FloatArray:
    got, done = [], 0
    for count in chunks:
        got.append(runner.run([Chunk(slot, tokens[done : done + count], "all")])[0])
        done += count
    return np.concatenate(got)


def executions(opened: Opened, work: Callable[[], object]) -> tuple[int, int]:
    """How often the engines were executed on their own, and how often a graph was launched."""
    log = opened.driver.log
    before = log.count("execute"), log.count("launch graph")
    work()
    return log.count("execute") - before[0], log.count("launch graph") - before[1]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@BOTH
def test_every_architecture_has_the_logits_of_the_cpu_checker(
    tmp_path: Path, dialect: Dialect, dtype: Literal["float16", "float32"], name: str
) -> None:
    model = export(tmp_path, dialect, name, dtype)
    expected = CHECKERS[dialect].logits(model.parent, TOKENS[:60], threads=1)
    opened = open_double(build(model, segments=2), sequence_slots=2, window=window_of(model))
    for slot, chunks in ((1, [40, *[1] * 5, 15]), (0, [1, 1, 58])):
        got = in_chunks(opened.runner, TOKENS[:60], chunks, slot)
        np.testing.assert_allclose(got, expected, atol=FP16 if dtype == "float16" else 2e-4)


@BOTH
@pytest.mark.parametrize("segments", [1, 2, 3])
def test_segments_have_the_logits_of_the_whole(tmp_path: Path, dialect: Dialect, segments: int) -> None:
    model = export(tmp_path, dialect)
    whole = in_chunks(open_double(build(model)).runner, TOKENS[:30], [20, 1, 1, 8])
    opened = open_double(build(model, segments=segments))
    np.testing.assert_array_equal(in_chunks(opened.runner, TOKENS[:30], [20, 1, 1, 8]), whole)


def test_a_slot_that_outgrows_its_bucket_goes_on_as_before(graph: Path) -> None:
    expected = PortableRunner.logits(graph.parent, TOKENS, threads=1)
    opened = open_double(build(graph, context=2048), sequence_slots=2)
    runner = opened.runner
    runner.run([Chunk(1, TOKENS[:50])])
    got = in_chunks(runner, TOKENS, [64] * 3 + [1] * 68 + [40])
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert runner._kv.place(0).stride == 512
    np.testing.assert_allclose(in_chunks(runner, TOKENS[50:60], [4, 1, 5], 1), expected[50:60], atol=2e-4)


def test_decoding_is_captured_once_per_length_bucket(graph: Path) -> None:
    opened = open_double(build(graph, context=2048, segments=3))
    runner = opened.runner

    def decode(count: int) -> None:
        for token in TOKENS[:count]:
            runner.run([Chunk(0, [token])])

    assert executions(opened, lambda: decode(1)) == (3 + 3, 0)  # plain, then captured
    assert executions(opened, lambda: decode(100)) == (0, 100)
    assert executions(opened, lambda: decode(200)) == (3 + 3, 199)  # 301 tokens do not fit 256 positions
    assert opened.driver.log.count("capture") == len(runner._decoding) == 2
    runner.truncate(0, 0)
    assert executions(opened, lambda: decode(50)) == (0, 50)
    # The kernel is part of the graph: launched by name only in the plain executions and the captures.
    assert opened.driver.log.count("launch kernel") == 4


@BOTH
def test_slots_that_decode_together_are_executed_together(tmp_path: Path, dialect: Dialect) -> None:
    model = export(tmp_path, dialect)
    expected = CHECKERS[dialect].logits(model.parent, TOKENS[:40], threads=1)
    opened = open_double(build(model, batch=3), sequence_slots=4)
    runner = opened.runner
    for slot in range(4):
        runner.run([Chunk(slot, TOKENS[: 10 + slot])])
    step = 0

    def decode() -> None:
        nonlocal step
        rows = runner.run([Chunk(slot, [TOKENS[10 + slot + step]]) for slot in (2, 0, 1)])
        for slot, row in zip((2, 0, 1), rows, strict=True):
            np.testing.assert_allclose(row[0], expected[10 + slot + step], atol=2e-4)
        step += 1

    assert executions(opened, decode) == (2, 0)
    assert executions(opened, decode) == (0, 1)
    # Slot 1 waits, 3 comes in: 2 and 3 are neighbours, and 0 is alone until they have run together for some steps.
    done = step

    def others() -> None:
        nonlocal done
        for slot, row in zip((0, 2, 3), runner.run([Chunk(s, [TOKENS[_at(s, done)]]) for s in (0, 2, 3)]), strict=True):
            np.testing.assert_allclose(row[0], expected[_at(slot, done)], atol=2e-4)
        done += 1

    def _at(slot: int, number: int) -> int:
        return 10 + slot + (number if slot != 3 else number - step)

    assert executions(opened, others) == (4, 0)
    assert executions(opened, others) == (0, 2)
    assert executions(opened, others) == (0, 2)
    # Side by side they are where 0, 1 and 2 were: that step was captured.
    assert executions(opened, others) == (0, 1)
    assert executions(opened, others) == (0, 1)
    # What was moved aside is unharmed.
    np.testing.assert_allclose(runner.run([Chunk(1, [TOKENS[11 + step]])])[0][0], expected[11 + step], atol=2e-4)


def test_engines_for_one_sequence_run_slots_one_after_another(graph: Path) -> None:
    opened = open_double(build(graph, batch=1), sequence_slots=3)
    steps = [Chunk(slot, [TOKENS[slot]]) for slot in range(3)]
    opened.runner.run(steps)
    assert executions(opened, lambda: opened.runner.run(steps)) == (0, 3)


def test_a_graphics_card_with_its_own_memory_gives_the_same(graph: Path) -> None:
    chunks = [64, 1, 1, 1, 33]
    jetson, card = (
        open_double(build(graph), new_driver(integrated=integrated), sequence_slots=2) for integrated in (True, False)
    )
    for slot in range(2):
        expected = in_chunks(jetson.runner, TOKENS[:100], chunks, slot)
        np.testing.assert_array_equal(in_chunks(card.runner, TOKENS[:100], chunks, slot), expected)
    assert "allocate managed" not in card.driver.log
    assert "allocate host" not in jetson.driver.log


def test_a_step_that_cannot_be_captured_runs_plainly_and_the_log_says_so(
    graph: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_double(build(graph))
    expected = in_chunks(opened.runner, TOKENS[:20], [10, *[1] * 10])
    other = open_double(build(graph))
    captures = other.driver._captures
    monkeypatch.setattr(other.driver, "cuStreamEndCapture", lambda stream: (900, captures.pop(stream)))
    np.testing.assert_array_equal(in_chunks(other.runner, TOKENS[:20], [10, *[1] * 10]), expected)
    (message,) = [record.message for record in caplog.records if "CUDA graphs" in record.message]
    assert "cuStreamEndCapture failed: 900" in message
    assert other.driver.log.count("capture") == 1


def test_a_library_that_cannot_capture_yet_is_asked_again_in_the_next_step(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_double(build(graph))
    answers = iter([False, False, True])
    monkeypatch.setattr(IExecutionContext, "is_stream_capturable", lambda *_: next(answers))
    decoded = [executions(opened, lambda: opened.runner.run([Chunk(0, [7])])) for _ in range(5)]
    assert decoded == [(1, 0), (1, 0), (2, 0), (0, 1), (0, 1)]


def test_a_library_without_that_question_is_not_asked(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(IExecutionContext, "is_stream_capturable")
    monkeypatch.delattr(ICudaEngine, "get_aliased_input_tensor")
    opened = open_double(build(graph))
    in_chunks(opened.runner, TOKENS[:12], [10, 1, 1])
    assert opened.driver.log.count("launch graph") == 1


def test_only_the_steps_used_last_are_kept(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_KEPT", 2)
    opened = open_double(build(graph, context=2048), sequence_slots=3)
    steps = [[Chunk(0, [1])], [Chunk(0, [1]), Chunk(1, [2])], [Chunk(slot, [3]) for slot in range(3)]]
    for step in steps:
        opened.runner.run(step)
    assert executions(opened, lambda: opened.runner.run(steps[2])) == (0, 1)
    assert executions(opened, lambda: opened.runner.run(steps[1])) == (0, 1)
    assert executions(opened, lambda: opened.runner.run(steps[0])) == (2, 0)
    assert len(opened.driver._executables) == len(opened.runner._decoding) == 2
    assert executions(opened, lambda: opened.runner.run(steps[2])) == (2, 0)


def test_a_refusal_carries_the_librarys_reason_and_leaves_the_slot_as_it_was(graph: Path) -> None:
    opened = open_double(build(graph))
    runner = opened.runner
    expected = in_chunks(runner, TOKENS[:20], [10, 10])
    runner.truncate(0, 10)
    context, _, _ = runner._chunks._contexts[0]
    scratch, context._scratch = context._scratch, (0, 0)
    with pytest.raises(RunnerError, match="TensorRT failed: it did not execute: no scratch memory"):
        runner.run([Chunk(0, TOKENS[10:20])])
    assert runner.length(0) == 10
    context._scratch = scratch
    np.testing.assert_array_equal(runner.run([Chunk(0, TOKENS[10:20], "all")])[0], expected[10:])


def test_a_step_that_fails_halfway_leaves_every_slot_as_it_was(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_double(build(graph), sequence_slots=3)
    runner = opened.runner
    expected = in_chunks(runner, TOKENS[:20], [5, 1, 14])
    runner.truncate(0, 5)
    real, calls = runner._chunks.enqueue, []

    def fails_at_the_second() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RunnerError("out of memory")
        real()

    monkeypatch.setattr(runner._chunks, "enqueue", fails_at_the_second)
    with pytest.raises(RunnerError, match="TensorRT failed: out of memory"):
        runner.run([Chunk(0, TOKENS[5:6]), Chunk(1, TOKENS[:4]), Chunk(2, TOKENS[:9])])
    assert [runner.length(slot) for slot in range(3)] == [5, 0, 0]
    np.testing.assert_array_equal(in_chunks(runner, TOKENS[5:20], [1, 14]), expected[5:])


def test_a_graph_with_a_sliding_window_needs_its_size(tmp_path: Path) -> None:
    engines = build(export(tmp_path, "portable", "mistral-window"))
    with pytest.raises(RunnerError, match="the size of the sliding window is not known"):
        open_double(engines)


def test_logits_of_a_step_outlive_the_next_one(graph: Path) -> None:
    opened = open_double(build(graph), sequence_slots=2)
    first = opened.runner.run([Chunk(0, TOKENS[:1]), Chunk(1, TOKENS[:30], "all")])
    kept = [rows.copy() for rows in first]
    opened.runner.run([Chunk(0, TOKENS[5:6]), Chunk(1, TOKENS[30:50], "all")])
    for rows, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(rows, copy)


@BOTH
@pytest.mark.parametrize("integrated", [True, False])
def test_closing_frees_everything(tmp_path: Path, dialect: Dialect, integrated: bool) -> None:
    engines = build(export(tmp_path, dialect), segments=2)
    opened = open_double(engines, new_driver(integrated=integrated), sequence_slots=2)
    in_chunks(opened.runner, TOKENS[:30], [20, 1, 1, 8])
    opened.runner.close()
    opened.runner.close()
    assert opened.driver.allocated == opened.driver.open_handles == 0
    assert not opened.driver.faults


@pytest.mark.parametrize("integrated", [True, False])
def test_too_little_memory_frees_what_was_allocated(graph: Path, integrated: bool) -> None:
    engines = build(graph, context=512)
    full = new_driver(integrated=integrated)
    open_double(engines, full)
    # Each allocation in turn is the one that fails.
    for number in range(sum(entry.startswith("allocate") for entry in full.log)):
        driver = new_driver(integrated=integrated)
        driver.fail_at = number
        with pytest.raises(RunnerError, match="CUDA_ERROR_OUT_OF_MEMORY"):
            open_double(engines, driver)
        assert driver.allocated == driver.open_handles == 0


def test_slots_that_grow_apart_are_moved_side_by_side_again(graph: Path) -> None:
    opened = open_double(build(graph, context=2048), sequence_slots=3)
    runner = opened.runner
    for slot, count in enumerate((250, 100, 253)):
        for start in range(0, count, 64):
            runner.run([Chunk(slot, TOKENS[start : min(start + 64, count)])])
    pair = [Chunk(0, [3]), Chunk(2, [4])]
    for _ in range(16):
        runner.run(pair)
    assert [runner._kv.place(slot).stride for slot in range(3)] == [512, 256, 512]
    assert executions(opened, lambda: runner.run(pair)) == (0, 1)


def test_engines_of_something_else_are_refused(graph: Path, tmp_path: Path) -> None:
    whole = build(graph, segments=2)
    with pytest.raises(RunnerError, match="the engines have no `logits`"):
        open_double(whole[:1])
    engine = tmp_path / "one.engine"
    engine.write_text(whole[0].read_text().replace('"profiles": [', '"profiles": [], "x": ['))
    with pytest.raises(RunnerError, match="lacks the profile"):
        open_double([engine])


@native_runs
def test_a_native_engine_that_copies_its_cache_is_refused(tmp_path: Path) -> None:
    (engine,) = build(export(tmp_path, "native"))
    engine.write_text(engine.read_text().replace('"aliases": {', '"aliases": {}, "x": {'))
    with pytest.raises(RunnerError, match=r"does not write `past_key_values\.0\.key` in place"):
        open_double([engine])
