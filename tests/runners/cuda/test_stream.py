"""The layer over the driver, and the rules that the double holds it to."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import RunnerError
from edgekit.runners.cuda.driver import Device
from edgekit.runners.cuda.memory import ALIGNMENT, DeviceMemory, SharedBuffer
from edgekit.runners.cuda.stream import Stream
from tests.runners.cuda.driver_double import DriverDouble

BOTH = pytest.mark.parametrize("integrated", [True, False], ids=["Jetson", "card"])


@pytest.fixture
def double() -> DriverDouble:
    return DriverDouble()


@pytest.fixture
def device(double: DriverDouble) -> Device:
    return Device(double)


def test_a_device_says_what_it_is(device: Device) -> None:
    assert (device.name, device.compute_capability, device.integrated) == ("Double", (8, 7), True)
    before = device.free_bytes()
    memory = DeviceMemory(device, 1000)
    assert before - device.free_bytes() == 1000
    assert memory.address % ALIGNMENT == 0
    memory.close()
    memory.close()
    assert device.free_bytes() == before


def test_too_little_memory_is_an_error_with_cudas_name_and_a_hint(device: Device) -> None:
    with pytest.raises(RunnerError, match="cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY") as caught:
        DeviceMemory(device, 1 << 40)
    assert "fewer sequence slots" in str(caught.value.hint)


@BOTH
def test_bytes_written_by_the_cpu_reach_the_gpu_and_come_back(integrated: bool) -> None:
    double = DriverDouble(integrated=integrated)
    device = Device(double)
    stream, shared, memory = Stream(device), SharedBuffer(device, 64), DeviceMemory(device, 64)
    shared.view(16, (3,), np.float32)[:] = 1, 2, 3
    shared.upload(stream, 16, 12)
    stream.copy_rows(memory.address, shared.address + 16, rows=1, row_bytes=12, target_stride=12, source_stride=12)
    stream.copy_rows(shared.address + 40, memory.address, rows=1, row_bytes=12, target_stride=12, source_stride=12)
    shared.download(stream, 40, 12)
    stream.synchronize()
    np.testing.assert_array_equal(shared.view(40, (3,), np.float32), [1, 2, 3])
    assert ("allocate managed" in double.log) == integrated
    for part in (shared, memory, stream):
        part.close()
    assert double.allocated == double.open_handles == 0


def test_rows_are_copied_with_a_stride_on_each_side(device: Device) -> None:
    stream, memory = Stream(device), DeviceMemory(device, 4 * 10 + 4 * 4)
    given = np.arange(40, dtype=np.uint8).reshape(4, 10)
    stream.write_rows(memory.address, given.ctypes.data, rows=4, row_bytes=10, target_stride=10, source_stride=10)
    packed = memory.address + 40
    stream.copy_rows(packed, memory.address + 3, rows=4, row_bytes=4, target_stride=4, source_stride=10)
    got = np.zeros((4, 6), np.uint8)
    stream.read_rows(got.ctypes.data, packed, rows=4, row_bytes=4, target_stride=6, source_stride=4)
    stream.synchronize()
    np.testing.assert_array_equal(got[:, :4], given[:, 3:7])
    assert not got[:, 4:].any()


def test_work_is_done_in_order_when_the_stream_is_synchronized(device: Device) -> None:
    stream, memory = Stream(device), DeviceMemory(device, 8)
    got = np.zeros(8, np.uint8)
    for value in (1, 2):
        given = np.full(8, value, np.uint8)
        stream.write_rows(memory.address, given.ctypes.data, rows=1, row_bytes=8, target_stride=8, source_stride=8)
        stream.read_rows(got.ctypes.data, memory.address, rows=1, row_bytes=8, target_stride=8, source_stride=8)
        if value == 1:
            assert not got.any()
            stream.synchronize()
            assert (got == 1).all()
    stream.synchronize()
    assert (got == 2).all()


def test_a_graph_repeats_its_work_with_new_contents(double: DriverDouble, device: Device) -> None:
    stream, shared, memory = Stream(device), SharedBuffer(device, 8), DeviceMemory(device, 8)
    graph = stream.capture(
        lambda: stream.copy_rows(memory.address, shared.address, rows=1, row_bytes=8, target_stride=8, source_stride=8)
    )
    for value in (3, 4):
        shared.host[:] = value
        graph.launch(stream)
        stream.synchronize()
        assert (double.memory(memory.address, 8) == value).all()
    graph.close()
    graph.close()
    stream.close()
    assert double.open_handles == 0


@pytest.mark.parametrize("what", ["allocate", "free", "synchronize"])
def test_what_cannot_be_captured_breaks_the_capture_and_leaves_no_graph(
    double: DriverDouble, device: Device, what: str
) -> None:
    stream, memory = Stream(device), DeviceMemory(device, 8)
    work = {"allocate": lambda: DeviceMemory(device, 8), "free": memory.close, "synchronize": stream.synchronize}[what]
    with pytest.raises(RunnerError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        stream.capture(work)  # type: ignore[arg-type]  # one of them returns something
    assert double.open_handles == 1
    stream.synchronize()


def test_work_on_freed_memory_is_an_error(device: Device) -> None:
    stream, memory, shared = Stream(device), DeviceMemory(device, 8), SharedBuffer(device, 8)
    stream.copy_rows(memory.address, shared.address, rows=1, row_bytes=8, target_stride=8, source_stride=8)
    memory.close()
    with pytest.raises(RunnerError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        stream.synchronize()


def test_managed_memory_written_while_the_gpu_works_is_an_error(device: Device) -> None:
    stream, shared, memory = Stream(device), SharedBuffer(device, 8), DeviceMemory(device, 8)
    stream.copy_rows(memory.address, shared.address, rows=1, row_bytes=8, target_stride=8, source_stride=8)
    shared.host[0] = 1
    with pytest.raises(RunnerError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        stream.synchronize()
