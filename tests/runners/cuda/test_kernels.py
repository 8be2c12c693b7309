"""The kernels' sources, on the CPU."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from compile_ptx import ARCHITECTURE, fetch_nvrtc
from hypothesis import given
from hypothesis import strategies as st

from edgekit.runners.cuda.driver import Device
from edgekit.runners.cuda.kernels import KvScatter, ptx
from edgekit.runners.cuda.memory import SharedBuffer
from edgekit.runners.cuda.stream import Stream
from tests.runners.cuda.driver_double import DriverDouble
from tests.runners.cuda.host_kernels import CSRC, host_kernel


@given(
    sizes=st.tuples(*(st.integers(1, high) for high in (4, 4, 3, 40, 9, 64))), before=st.integers(0, 3), data=st.data()
)
def test_new_rows_come_behind_the_old_ones_of_each_slot_and_nothing_else_changes(
    sizes: tuple[int, ...], before: int, data: st.DataObject
) -> None:
    tensors, batch, heads, rows, vectors, stride = sizes
    size = 8 * vectors
    rng = np.random.default_rng(rows)
    starts = np.array(data.draw(st.lists(st.integers(0, stride), min_size=batch, max_size=batch)), np.int64)
    double = DriverDouble({"scatter_kv_rows": host_kernel("kv_rows", "scatter_kv_rows")})
    device = Device(double)
    stream = Stream(device)
    scatter = KvScatter(device)
    new = rng.standard_normal((tensors, batch, heads, rows, size)).astype(np.float16)
    # `before` slots precede those of the batch, and one follows.
    old = rng.standard_normal((tensors, before + batch + 1, heads, stride, size)).astype(np.float16)
    tables = [np.zeros(tensors, np.uint64)] * 2
    arrays: list[npt.NDArray[Any]] = [new, old, starts, *tables]
    buffers = [SharedBuffer(device, array.nbytes) for array in arrays]

    def fill(index: int, array: npt.NDArray[np.generic]) -> None:
        buffers[index].view(0, array.shape, array.dtype)[...] = array

    fill(0, new)
    fill(1, old)
    fill(2, starts)
    for index, array, whole in ((3, new, buffers[0]), (4, old, buffers[1])):
        fill(index, np.array([whole.address + t * array[0].nbytes for t in range(tensors)], np.uint64))
    scatter.enqueue(
        stream,
        sources=buffers[3].address,
        caches=buffers[4].address,
        starts=buffers[2].address,
        tensors=tensors,
        batch=batch,
        heads=heads,
        rows=rows,
        row_bytes=2 * size,
        stride=stride,
        offset=before * old[0, 0].nbytes,
    )
    stream.synchronize()
    expected = old.copy()
    for sequence, start in enumerate(starts):
        # Rows past the end of a slot would lie in another head.
        kept = min(rows, stride - start)
        expected[:, before + sequence, :, start : start + kept] = new[:, sequence, :, :kept]
    np.testing.assert_array_equal(buffers[1].view(0, old.shape, np.float16), expected)


def test_a_captured_launch_reads_the_position_when_it_runs() -> None:
    double = DriverDouble({"scatter_kv_rows": host_kernel("kv_rows", "scatter_kv_rows")})
    device = Device(double)
    stream, scatter = Stream(device), KvScatter(device)
    new, cache, start, tables = (SharedBuffer(device, size) for size in (16, 16 * 8, 8, 16))
    tables.view(0, (2,), np.uint64)[:] = new.address, cache.address

    def enqueue() -> None:
        scatter.enqueue(
            stream, sources=tables.address, caches=tables.address + 8, starts=start.address, tensors=1, batch=1,
            heads=1, rows=1, row_bytes=16, stride=8, offset=0,
        )  # fmt: skip

    graph = stream.capture(enqueue)
    for position in (3, 5):
        start.view(0, (1,), np.int64)[0] = position
        new.host[:] = position
        graph.launch(stream)
        stream.synchronize()
    rows = cache.host.reshape(8, 16)
    assert [int(row[0]) for row in rows] == [0, 0, 0, 3, 0, 5, 0, 0]


def test_rows_that_are_no_multiple_of_16_bytes_are_refused() -> None:
    device = Device(DriverDouble({"scatter_kv_rows": lambda *_: None}))
    with pytest.raises(ValueError, match="rows of 24 bytes"):
        KvScatter(device).enqueue(
            Stream(device), sources=0, caches=0, starts=0, tensors=1, batch=1, heads=1, rows=1, row_bytes=24,
            stride=1, offset=0,
        )  # fmt: skip


def test_the_parameters_in_the_ptx_are_those_of_the_launch() -> None:
    text = ptx("kv_rows")
    assert text.endswith(b"\0")
    kinds: list[str] = []
    double = DriverDouble(
        {
            "scatter_kv_rows": lambda _grid, _block, *arguments: kinds.extend(
                f".u{8 * ctypes.sizeof(a)}" for a in arguments
            )
        }
    )
    device = Device(double)
    stream = Stream(device)
    KvScatter(device).enqueue(
        stream, sources=1, caches=2, starts=3, tensors=1, batch=1, heads=1, rows=1, row_bytes=16, stride=1, offset=0
    )
    stream.synchronize()
    declared = [line.split()[1] for line in text.decode().splitlines() if line.strip().startswith(".param")]
    assert kinds == declared


@pytest.mark.slow
def test_the_ptx_is_what_nvidias_compiler_makes_of_the_sources_and_it_compiles_for_an_orin(tmp_path: Path) -> None:
    compiler = fetch_nvrtc(tmp_path)
    sources = sorted(CSRC.glob("*.cu"))
    assert sources
    for source in sources:
        assert compiler.compile(source, ARCHITECTURE) == source.with_suffix(".ptx").read_bytes(), (
            "run scripts/compile_ptx.py"
        )
        assert compiler.compile(source, "sm_87").startswith(b"\x7fELF")
