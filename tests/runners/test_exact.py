"""Exact chunks: logits and KV cache are bit-identical whatever the chunks and the rest of the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edgekit.export.quantization.grid import Grid, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners.base import Chunk
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from edgekit.runners.session import BATCHED_FILE
from tests.conftest import Export
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.ort_version import BATCHED, WINDOWS_RUN
from tests.variants import variant

FloatArray = npt.NDArray[np.float32]

SLOTS, LENGTH, CONTEXT = 4, 90, 256
SEQUENCES = np.random.default_rng(3).integers(0, 512, (SLOTS, LENGTH)).tolist()
GRIDS = {
    "float": None,
    "4-bit": Grid(4, 32, Offset.SYMMETRIC, np.float16),
    "4-bit-points": Grid(4, 32, Offset.ZERO_POINT, np.float16),
    "4-bit-offsets": Grid(4, 32, Offset.FLOAT, np.float16),
    "8-bit": Grid(8, 64, Offset.ZERO_POINT, np.float16),
    "8-bit-offsets": Grid(8, 32, Offset.FLOAT, np.float16),
}


def tiny(folder: Path, grid: Grid | None, name: str = "qwen2-tied") -> Path:
    source = variant(name, folder / "hf")
    weights = TensorWeights(tiny_tensors(source), None if grid is None else lambda _, matrix: lsq(matrix, grid))
    (folder / "onnx").mkdir()
    OnnxWriter("onnxruntime")(tiny_decoder(source), weights, folder / "onnx", lambda _: None)
    return folder / "onnx"


def opened(folder: Path, **options: Any) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(folder, **({"threads": 1, "sequence_slots": SLOTS} | options))


def full_runs(runner: OnnxRuntimeRunner) -> list[tuple[FloatArray, bytes]]:
    """Logits and KV cache of each sequence, run alone in one chunk."""
    results = []
    for sequence in SEQUENCES:
        logits = runner.run([Chunk(0, sequence, "all", exact=True)])[0].copy()
        results.append((logits, runner.read_kv(0, 0, LENGTH)))
        runner.truncate(0, 0)
    return results


@pytest.fixture(params=GRIDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny(tmp_path, GRIDS[request.param])


@pytest.fixture(params=["batched", "plain"])
def runner(request: pytest.FixtureRequest, folder: Path) -> OnnxRuntimeRunner:
    if request.param == "plain":
        (folder / BATCHED_FILE).unlink()
    elif not BATCHED:
        pytest.skip("this graph needs onnxruntime 1.32 or later")
    return opened(folder)


def test_any_chunks_beside_any_other_slots_give_the_bits_of_one_long_chunk(runner: OnnxRuntimeRunner) -> None:
    expected, rng = full_runs(runner), np.random.default_rng(11)
    done = [0] * SLOTS
    while min(done) < LENGTH:
        chunks = []
        for slot in range(SLOTS):
            count = min(int(rng.choice([1, 1, 1, 2, 3, 6, 25])), LENGTH - done[slot])
            if count and rng.random() < 0.7:
                exact = rng.random() < 0.9
                tokens = SEQUENCES[slot][done[slot] : done[slot] + count]
                chunks.append(Chunk(slot, tokens, rng.choice(["all", "last", "none"]), exact))
        rows = runner.run(chunks)
        for chunk, got in zip(chunks, rows, strict=True):
            if not chunk.exact:
                runner.truncate(chunk.slot, done[chunk.slot])
                continue
            end = done[chunk.slot] + len(chunk.tokens)
            first = {"all": done[chunk.slot], "last": end - 1, "none": end}[chunk.logits]
            np.testing.assert_array_equal(got, expected[chunk.slot][0][first:end])
            done[chunk.slot] = end
            if rng.random() < 0.1:
                done[chunk.slot] = int(rng.integers(1, end + 1))
                runner.truncate(chunk.slot, done[chunk.slot])
    assert [runner.read_kv(slot, 0, LENGTH) for slot in range(SLOTS)] == [kv for _, kv in expected]


def test_a_cache_that_was_written_back_goes_on_with_the_same_bits(runner: OnnxRuntimeRunner) -> None:
    expected = full_runs(runner)
    for start, stop in ((0, 16), (16, 32), (32, 47)):
        runner.run([Chunk(0, SEQUENCES[0][start:stop], "none", exact=True)])
        assert runner.write_kv(3, start, memoryview(runner.read_kv(0, start, stop))) == stop
    for at in range(47, 60):
        got = runner.run([Chunk(3, SEQUENCES[0][at : at + 1], exact=True)])[0]
        np.testing.assert_array_equal(got[0], expected[0][0][at])
    full_cache = np.frombuffer(expected[0][1], np.float32).reshape(-1, LENGTH, 32)
    assert runner.read_kv(3, 0, 60) == full_cache[:, :60].tobytes()


@pytest.mark.parametrize("name", [*(["mistral-window"] if WINDOWS_RUN else []), "qwen3", "phi3-partial"])
def test_windows_head_norms_and_partly_rotated_heads_are_exact_too(tmp_path: Path, name: str) -> None:
    folder = tiny(tmp_path, GRIDS["4-bit-points"], name)
    runner = opened(folder)
    expected = full_runs(runner)
    for at in range(LENGTH):
        rows = runner.run([Chunk(slot, SEQUENCES[slot][at : at + 1], exact=True) for slot in (0, 1, 3)])
        for slot, got in zip((0, 1, 3), rows, strict=True):
            np.testing.assert_array_equal(got[0], expected[slot][0][at])


def test_the_last_position_of_the_context_is_exact_too(tmp_path: Path) -> None:
    runner = opened(tiny(tmp_path, GRIDS["4-bit-points"]))
    assert runner.limits.context_length == CONTEXT
    tokens = np.random.default_rng(4).integers(0, 512, CONTEXT).tolist()
    expected = runner.run([Chunk(0, tokens, "all", exact=True)])[0].copy()
    runner.run([Chunk(1, tokens[: CONTEXT - 3], exact=True)])
    for at in range(CONTEXT - 3, CONTEXT):
        rows = runner.run([Chunk(1, tokens[at : at + 1], exact=True), Chunk(3, tokens[at : at + 1], exact=True)])
        np.testing.assert_array_equal(rows[0][0], expected[at])
    assert runner.length(1) == CONTEXT
    runner.truncate(3, 0)
    # A full slot does not stop its neighbours.
    runner.run([Chunk(2, tokens[:250], exact=True)])
    rows = runner.run([Chunk(2, tokens[250:], "all", exact=True), Chunk(3, tokens[:6], "all", exact=True)])
    np.testing.assert_array_equal(rows[0], expected[250:])
    np.testing.assert_array_equal(rows[1], expected[:6])


def test_a_bundle_whose_rope_tables_end_with_the_context_gives_up_one_position(tmp_path: Path) -> None:
    folder = tiny(tmp_path, None)
    (folder / BATCHED_FILE).unlink()
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    onnx.helper.set_model_props(model, {"edgekit.dialect": "onnxruntime", "edgekit.context_length": str(CONTEXT)})
    onnx.save(model, folder / "model.onnx")
    assert opened(folder).limits.context_length == CONTEXT - 1
    assert opened(folder, context_length=100).limits.context_length == 100


def test_the_real_model_decodes_the_bits_of_one_long_chunk_with_other_slots_beside_it(export: Export) -> None:
    runner = OnnxRuntimeRunner(export("cpu"), context_length=512, sequence_slots=3)
    tokens = np.random.default_rng(5).integers(100, 40_000, 64).tolist()
    expected = runner.run([Chunk(0, tokens, "all", exact=True)])[0].copy()
    cache = runner.read_kv(0, 0, 64)
    runner.truncate(0, 40)
    runner.run([Chunk(1, tokens[:17], "none", exact=True), Chunk(2, tokens[3:9], "none", exact=True)])
    for at in range(40, 60):
        # In turns alone (where the head needs a padding row), with one neighbour, and with both.
        beside = [Chunk(slot, [7, 8, 9][: at % 3], exact=True) for slot in range(1, 1 + at % 3)]
        got = runner.run([Chunk(0, tokens[at : at + 1], exact=True), *beside])[0]
        np.testing.assert_array_equal(got[0], expected[at])
    np.testing.assert_array_equal(runner.run([Chunk(0, tokens[60:], "all", exact=True)])[0], expected[60:])
    assert runner.read_kv(0, 0, 64) == cache
