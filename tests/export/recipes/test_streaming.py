"""Matrices read by rows, quantized in threads and prefetched, against the full matrix at once."""

from __future__ import annotations

import threading
import time
import tracemalloc
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.checkpoints import hashing
from edgekit.export.checkpoints.base import Checkpoint, HashProgress, SourceFile
from edgekit.export.checkpoints.hashing import SourceHashes
from edgekit.export.io.buffers import Buffers
from edgekit.export.quantization.float_rows import FloatRows
from edgekit.export.quantization.grid import GroupedTensor, as_floats
from edgekit.export.recipes import streaming
from edgekit.export.recipes.recipe import Recipe, recipe_for
from edgekit.export.recipes.streaming import CheckpointWeights
from edgekit.export.sources.open import open_checkpoint
from edgekit.target import load_target
from tests.models import tiny_checkpoint, tiny_decoder

FloatArray = npt.NDArray[np.float32]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setattr(streaming, "_SPAN", 1000)  # several spans even in a tiny matrix
    return open_checkpoint(str(tiny_checkpoint(tmp_path / "model")))


def linears(tmp_path: Path) -> list[Linear]:
    decoder = tiny_decoder(tmp_path / "model")
    return [decoder.embedding, *decoder.linears()]


def recipe(method: str = "lsq", target: str = "m2") -> Recipe:
    return recipe_for(load_target(target), method, None)


def same(one: GroupedTensor | FloatArray, other: GroupedTensor | FloatArray) -> None:
    assert type(one) is type(other)
    np.testing.assert_array_equal(as_floats(one), as_floats(other))
    if isinstance(one, GroupedTensor) and isinstance(other, GroupedTensor):
        assert (one.bits, one.group_size) == (other.bits, other.group_size)


@pytest.mark.parametrize("method", ["lsq", "rtn", "none"])
@pytest.mark.parametrize("ahead", [True, False])
def test_a_matrix_made_of_spans_is_the_matrix_quantized_at_once(
    checkpoint: Checkpoint, tmp_path: Path, method: str, ahead: bool
) -> None:
    order = linears(tmp_path)
    with CheckpointWeights(checkpoint, recipe(method), order if ahead else ()) as source:
        for linear in order:
            full, treatment = recipe(method).apply(linear, checkpoint.read(linear.weight), "F32")
            same(source.matrix(linear), full)
            assert source.used[treatment]
        assert source.used.total() == len(order)


def test_reading_in_another_order_gives_the_same_matrices(checkpoint: Checkpoint, tmp_path: Path) -> None:
    order = linears(tmp_path)
    with CheckpointWeights(checkpoint, recipe(), order) as source:
        for linear in reversed(order):
            same(source.matrix(linear), recipe().apply(linear, checkpoint.read(linear.weight), "F32")[0])


def test_the_fraction_read_ends_at_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    order = linears(tmp_path)
    with CheckpointWeights(checkpoint, recipe("none"), order) as source:
        assert source.fraction_read() == 0
        seen = []
        for linear in order:
            source.matrix(linear)
            seen.append(source.fraction_read())
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_at_most_one_matrix_is_prefetched(checkpoint: Checkpoint, tmp_path: Path) -> None:
    order = linears(tmp_path)
    read = CheckpointWeights(checkpoint, recipe(), order)
    with read as source:
        source.matrix(order[0])
        time.sleep(0.3)
        sizes = [linear.in_features * linear.out_features for linear in order]
        assert source.fraction_read() <= (sizes[0] + sizes[1] + order[1].in_features * 2) / sum(sizes)


@pytest.mark.parametrize("method", ["none", "lsq"])
def test_a_table_is_the_matrix(checkpoint: Checkpoint, tmp_path: Path, method: str) -> None:
    order = linears(tmp_path)
    with CheckpointWeights(checkpoint, recipe(method), order) as source:
        for linear in order:
            table = source.table(linear)
            if isinstance(table, FloatRows):
                assert method == "none"
                assert table.shape == (linear.out_features, linear.in_features)
                found = np.concatenate(list(table.parts()))
                np.testing.assert_array_equal(found, as_floats(checkpoint.read(linear.weight)))
            else:
                same(table, recipe(method).apply(linear, checkpoint.read(linear.weight), "F32")[0])
    assert source.fraction_read() >= 1
    assert source.used.total() == len(order)


class Zeros:
    """A checkpoint of one large table."""

    tensors: ClassVar[dict[str, object]] = {}

    def read(self, _: str, start: int, stop: int) -> FloatArray:
        return np.zeros((stop - start, 256), np.float32)


def test_a_float_table_is_never_fully_in_memory() -> None:
    table = Linear("table", 256, 400_000)
    tracemalloc.start()
    try:
        with CheckpointWeights(Zeros(), recipe("none"), (table,)) as source:  # type: ignore[arg-type]
            rows = source.table(table)
            assert isinstance(rows, FloatRows)
            assert sum(len(part) for part in rows.parts()) == table.out_features
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400_000 * 256 * 4 / 5


class Failing:
    """A checkpoint whose rows cannot be read from some row on."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name
        self.tensors = checkpoint.tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray | GroupedTensor:
        if name == self._name and start > 0:
            raise ExportError("the disk failed")
        return self._checkpoint.read(name, start, stop)


def test_an_error_while_prefetching_is_raised_when_the_matrix_is_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    order = linears(tmp_path)
    failing = Failing(checkpoint, order[1].weight)
    with CheckpointWeights(failing, recipe(), order) as source:  # type: ignore[arg-type]
        source.matrix(order[0])
        with pytest.raises(ExportError, match="the disk failed"):
            source.matrix(order[1])


def test_no_thread_outlives_the_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    before = threading.active_count()
    order = linears(tmp_path)
    with CheckpointWeights(checkpoint, recipe(), order) as source:
        source.matrix(order[0])
        assert threading.active_count() > before
    assert threading.active_count() == before


class Endless:
    """A checkpoint whose files take a hundred steps to hash."""

    def __init__(self) -> None:
        self.done = 0

    def source(self, progress: HashProgress) -> tuple[SourceFile, ...]:
        while self.done < 100:
            self.done += 1
            progress(self.done << 20, 100 << 20)
        return (SourceFile("model", self.done, "0" * 64),)


def test_hashing_stays_slightly_ahead_of_the_reader_until_the_result_is_requested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hashing, "_LEAD", 10 << 20)
    files, read = Endless(), [0.0]
    with SourceHashes(files, lambda: read[0]) as hashes:  # type: ignore[arg-type]
        for share, expected in ((0.0, 11), (0.3, 41)):
            read[0] = share
            deadline = time.monotonic() + 5
            while files.done < expected and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            assert files.done == expected
        assert hashes.result()[0].size == 100


def test_hashing_that_is_no_longer_needed_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_LEAD", 10 << 20)
    files = Endless()
    with pytest.raises(KeyboardInterrupt), SourceHashes(files, lambda: 0.0):  # type: ignore[arg-type]
        raise KeyboardInterrupt
    assert files.done < 20


def test_a_buffer_is_reused_only_when_its_last_view_is_gone() -> None:
    buffers = Buffers()
    first = buffers.take(1000)
    first[:] = 7
    view = first.reshape(10, 100)[2:]
    address = first.ctypes.data
    del first
    other = buffers.take(1000)
    assert other.ctypes.data != address
    other[:] = 9
    assert (view == 7).all()
    del view
    again = buffers.take(500)
    assert again.ctypes.data == address
    assert buffers.take(1000).ctypes.data not in {address, other.ctypes.data}
