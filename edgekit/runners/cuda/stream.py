"""A queue of work for the GPU, and graphs: work that was captured once and is launched as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.errors import RunnerError
from edgekit.runners.cuda.driver import Device

__all__ = ["Graph", "Stream"]


class Graph:
    """Captured work: the same kernels with the same arguments, launched at the cost of one."""

    def __init__(self, device: Device, executable: Any) -> None:
        self._device = device
        self._executable = executable

    def launch(self, stream: Stream) -> None:
        """Enqueue the work."""
        self._device.call("cuGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Release the graph; its work must have ended."""
        if self._executable is not None:
            self._device.call("cuGraphExecDestroy", self._executable)
            self._executable = None


class Stream:
    """A stream of its own, which does not wait for the default stream.

    Attributes:
        handle: What the driver's functions take; `int(handle)` is what TensorRT takes.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.handle: Any = device.call("cuStreamCreate", int(device.api.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def synchronize(self) -> None:
        """Wait until all work has ended.

        Raises:
            RunnerError: Some work failed.
        """
        self._device.call("cuStreamSynchronize", self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` enqueues, without executing it, as a graph.

        Raises:
            RunnerError: `work` did something that cannot be captured.
        """
        mode = self._device.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._device.call("cuStreamBeginCapture", self.handle, mode)
        try:
            work()
        except BaseException:
            self._discard_capture()
            raise
        graph = self._device.call("cuStreamEndCapture", self.handle)
        try:
            return Graph(self._device, self._device.call("cuGraphInstantiate", graph, 0))
        finally:
            self._device.call("cuGraphDestroy", graph)

    def zero(self, address: int, size: int) -> None:
        """Enqueue zeros into the GPU's memory."""
        self._device.call("cuMemsetD8Async", address, 0, size, self.handle)

    def copy_rows(
        self, target: int, source: int, *, rows: int, row_bytes: int, target_stride: int, source_stride: int
    ) -> None:
        """Enqueue a copy of rows within the GPU's memory; addresses, sizes and strides in bytes."""
        copy = self._rows(rows, row_bytes, target_stride, source_stride)
        memory = self._device.api.CUmemorytype
        copy.dstMemoryType, copy.dstDevice = memory.CU_MEMORYTYPE_DEVICE, self._pointer(target)
        copy.srcMemoryType, copy.srcDevice = memory.CU_MEMORYTYPE_DEVICE, self._pointer(source)
        self._device.call("cuMemcpy2DAsync", copy, self.handle)

    def read_rows(
        self, target: int, source: int, *, rows: int, row_bytes: int, target_stride: int, source_stride: int
    ) -> None:
        """Enqueue a copy of rows to the CPU's memory at address `target`, which must stay until it has ended."""
        copy = self._rows(rows, row_bytes, target_stride, source_stride)
        memory = self._device.api.CUmemorytype
        copy.dstMemoryType, copy.dstHost = memory.CU_MEMORYTYPE_HOST, target
        copy.srcMemoryType, copy.srcDevice = memory.CU_MEMORYTYPE_DEVICE, self._pointer(source)
        self._device.call("cuMemcpy2DAsync", copy, self.handle)

    def write_rows(
        self, target: int, source: int, *, rows: int, row_bytes: int, target_stride: int, source_stride: int
    ) -> None:
        """Enqueue a copy of rows from the CPU's memory at address `source`, which must stay until it has ended."""
        copy = self._rows(rows, row_bytes, target_stride, source_stride)
        memory = self._device.api.CUmemorytype
        copy.dstMemoryType, copy.dstDevice = memory.CU_MEMORYTYPE_DEVICE, self._pointer(target)
        copy.srcMemoryType, copy.srcHost = memory.CU_MEMORYTYPE_HOST, source
        self._device.call("cuMemcpy2DAsync", copy, self.handle)

    def close(self) -> None:
        """Release the stream."""
        if self.handle is not None:
            self._device.call("cuStreamDestroy", self.handle)
            self.handle = None

    def _rows(self, rows: int, row_bytes: int, target_stride: int, source_stride: int) -> Any:
        copy = self._device.api.CUDA_MEMCPY2D()
        copy.WidthInBytes, copy.Height = row_bytes, rows
        copy.dstPitch, copy.srcPitch = target_stride, source_stride
        return copy

    def _pointer(self, address: int) -> Any:
        return self._device.api.CUdeviceptr(address)

    def _discard_capture(self) -> None:
        try:
            graph = self._device.call("cuStreamEndCapture", self.handle)
        except RunnerError:
            return  # what failed has ended it
        if graph is not None and int(graph):
            self._device.call("cuGraphDestroy", graph)
