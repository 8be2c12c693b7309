"""A double of `cuda.bindings.driver` over host memory: proves bookkeeping, not numbers, and nothing about speed.

Addresses are integers, kernels run on the CPU (`host_kernels.py`), and a stream executes its work when it is
synchronized, so that a result read too early is seen to be missing. What a real driver refuses, or would crash at, is
an error here:

- memory that was not allocated, was freed, or ends too early, when the work that uses it executes;
- allocating, freeing, waiting or copying synchronously while a stream captures;
- the CPU writing managed memory while work is pending, which a Jetson does not allow.

`test_driver_double.py` compares names, parameters and constants with the real library's.
"""

# ruff: noqa: N801, N802, N803, N818, PLR0917 - the names and parameters are the library's

from __future__ import annotations

import ctypes
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DriverDouble"]

Work = Callable[[], None]
HostKernel = Callable[..., None]


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class CUdevice_attribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_INTEGRATED = 18
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUmemAttach_flags(IntEnum):
    CU_MEM_ATTACH_GLOBAL = 1


class CUstream_flags(IntEnum):
    CU_STREAM_NON_BLOCKING = 1


class CUstreamCaptureMode(IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class CUmemorytype(IntEnum):
    CU_MEMORYTYPE_HOST = 1
    CU_MEMORYTYPE_DEVICE = 2


class CUdeviceptr(int):
    pass


class CUDA_MEMCPY2D:
    def __init__(self) -> None:
        self.WidthInBytes = self.Height = self.dstPitch = self.srcPitch = 0
        self.dstXInBytes = self.dstY = self.srcXInBytes = self.srcY = 0
        self.dstMemoryType = self.srcMemoryType = CUmemorytype.CU_MEMORYTYPE_HOST
        self.dstDevice = self.srcDevice = CUdeviceptr(0)
        self.dstHost = self.srcHost = 0


class Fault(Exception):
    """What a real driver answers with an error."""

    def __init__(self, status: CUresult, what: str) -> None:
        super().__init__(what)
        self.status = status


class DriverDouble:
    """The double; the functions of the library are its methods, with the library's parameter names.

    Args:
        kernels: Kernels by name; called with the grid, the block and their arguments.
        integrated: As on a Jetson.
        memory: Bytes of the GPU.

    Attributes:
        log: Every call that allocated, captured or launched, in order.
        faults: What was wrong, of every error.
        fail_at: The number of allocations until the one that fails; negative for none.
    """

    CUresult = CUresult
    CUdevice_attribute = CUdevice_attribute
    CUmemAttach_flags = CUmemAttach_flags
    CUstream_flags = CUstream_flags
    CUstreamCaptureMode = CUstreamCaptureMode
    CUmemorytype = CUmemorytype
    CUdeviceptr = CUdeviceptr
    CUDA_MEMCPY2D = CUDA_MEMCPY2D

    def __init__(
        self, kernels: Mapping[str, HostKernel] | None = None, *, integrated: bool = True, memory: int = 1 << 30
    ) -> None:
        self.log: list[str] = []
        self.faults: list[str] = []
        self.fail_at = -1
        self._kernels = dict(kernels or {})
        self._integrated = integrated
        self._total = memory
        self._buffers: dict[int, npt.NDArray[np.uint8]] = {}
        self._kinds: dict[int, str] = {}
        self._queues: dict[int, list[Work]] = {}
        self._captures: dict[int, list[Work]] = {}
        self._broken: set[int] = set()
        self._graphs: dict[int, list[Work]] = {}
        self._executables: dict[int, list[Work]] = {}
        self._functions: dict[int, HostKernel] = {}
        self._modules: set[int] = set()
        self._checksums: dict[int, int] = {}
        self._next = 1000
        self._current = self._initialized = False

    # What a double of TensorRT needs.

    def memory(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """Return allocated memory of the GPU."""
        bases = sorted(self._buffers)
        at = bisect_right(bases, address) - 1
        if at < 0 or address + size > bases[at] + self._buffers[bases[at]].size:
            raise Fault(CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, f"{size} bytes at {address:#x} are not allocated")
        start = address - bases[at]
        return self._buffers[bases[at]][start : start + size]

    def enqueue(self, stream: int, work: Work) -> None:
        """Add work to a stream, or to what it captures."""
        if stream in self._captures:
            self._captures[stream].append(work)
            return
        if stream not in self._queues:
            raise Fault(CUresult.CUDA_ERROR_INVALID_HANDLE, f"no stream {stream}")
        if not any(self._queues.values()):
            self._checksums = self._managed_checksums()
        self._queues[stream].append(work)

    def capturing(self, stream: int) -> bool:
        return stream in self._captures

    @property
    def allocated(self) -> int:
        """Bytes of memory in use."""
        return sum(buffer.size for buffer in self._buffers.values())

    @property
    def open_handles(self) -> int:
        """Streams, graphs and modules that were not closed."""
        return len(self._queues) + len(self._graphs) + len(self._executables) + len(self._modules)

    # The library's functions.

    def cuInit(self, Flags: int) -> tuple[Any, ...]:
        self._initialized = True
        return (CUresult.CUDA_SUCCESS if Flags == 0 else CUresult.CUDA_ERROR_INVALID_VALUE,)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        if not self._initialized:
            return self._error(CUresult.CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called", None)
        if ordinal:
            return self._error(CUresult.CUDA_ERROR_INVALID_DEVICE, f"no device {ordinal}", None)
        return CUresult.CUDA_SUCCESS, 0

    def cuDeviceGetName(self, length: int, dev: int) -> tuple[Any, ...]:  # noqa: ARG002
        return CUresult.CUDA_SUCCESS, b"Double".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attrib: int, dev: int) -> tuple[Any, ...]:  # noqa: ARG002
        integrated = CUdevice_attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED
        major = CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        return CUresult.CUDA_SUCCESS, int(self._integrated) if attrib == integrated else 8 if attrib == major else 7

    def cuDevicePrimaryCtxRetain(self, dev: int) -> tuple[Any, ...]:  # noqa: ARG002
        return CUresult.CUDA_SUCCESS, 77

    def cuDevicePrimaryCtxRelease(self, dev: int) -> tuple[Any, ...]:  # noqa: ARG002
        self._current = False
        return (CUresult.CUDA_SUCCESS,)

    def cuCtxSetCurrent(self, ctx: int) -> tuple[Any, ...]:
        self._current = ctx == 77
        return (CUresult.CUDA_SUCCESS,)

    def cuMemGetInfo(self) -> tuple[Any, ...]:
        return CUresult.CUDA_SUCCESS, self._total - self.allocated, self._total

    def cuMemAlloc(self, bytesize: int) -> tuple[Any, ...]:
        return self._allocate(bytesize, "device")

    def cuMemAllocManaged(self, bytesize: int, flags: int) -> tuple[Any, ...]:
        if flags != CUmemAttach_flags.CU_MEM_ATTACH_GLOBAL:
            return self._error(CUresult.CUDA_ERROR_INVALID_VALUE, "flags", None)
        if any(self._queues.values()):
            return self._error(
                CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, "the CPU would clear it while work is pending", None
            )
        return self._allocate(bytesize, "managed")

    def cuMemHostAlloc(self, bytesize: int, Flags: int) -> tuple[Any, ...]:
        return self._allocate(bytesize, "host") if Flags == 0 else (CUresult.CUDA_ERROR_INVALID_VALUE, None)

    def cuMemFree(self, dptr: int) -> tuple[Any, ...]:
        return self._free(int(dptr), {"device", "managed"})

    def cuMemFreeHost(self, p: int) -> tuple[Any, ...]:
        return self._free(int(p), {"host"})

    def cuMemcpyHtoD(self, dstDevice: int, srcHost: int, ByteCount: int) -> tuple[Any, ...]:
        if self._captures:
            return self._refused("cuMemcpyHtoD")
        try:
            self._drain()
            self.memory(int(dstDevice), ByteCount)[:] = np.frombuffer(ctypes.string_at(srcHost, ByteCount), np.uint8)
        except Fault as fault:
            return self._error(fault.status, str(fault))
        return (CUresult.CUDA_SUCCESS,)

    def cuMemcpyHtoDAsync(self, dstDevice: int, srcHost: int, ByteCount: int, hStream: int) -> tuple[Any, ...]:
        def copy() -> None:
            self.memory(int(dstDevice), ByteCount)[:] = self._host(int(srcHost), ByteCount)

        return self._enqueued(hStream, copy)

    def cuMemcpyDtoHAsync(self, dstHost: int, srcDevice: int, ByteCount: int, hStream: int) -> tuple[Any, ...]:
        def copy() -> None:
            self._host(int(dstHost), ByteCount)[:] = self.memory(int(srcDevice), ByteCount)

        return self._enqueued(hStream, copy)

    def cuMemcpy2DAsync(self, pCopy: Any, hStream: int) -> tuple[Any, ...]:
        width, height = pCopy.WidthInBytes, pCopy.Height
        if width > min(pCopy.dstPitch, pCopy.srcPitch):
            return self._error(CUresult.CUDA_ERROR_INVALID_VALUE, "rows are longer than the pitch")
        device = CUmemorytype.CU_MEMORYTYPE_DEVICE
        ends = [
            (pCopy.dstMemoryType == device, int(pCopy.dstDevice), int(pCopy.dstHost), pCopy.dstPitch),
            (pCopy.srcMemoryType == device, int(pCopy.srcDevice), int(pCopy.srcHost), pCopy.srcPitch),
        ]

        def rows(on_device: bool, address: int, host: int, pitch: int) -> list[npt.NDArray[np.uint8]]:
            if on_device:
                return [self.memory(address + row * pitch, width) for row in range(height)]
            size = pitch * (height - 1) + width
            flat = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(host))
            return [flat[row * pitch :][:width] for row in range(height)]

        def copy() -> None:
            target, source = (rows(*end) for end in ends)
            for to, of in zip(target, source, strict=True):
                if np.shares_memory(to, of):
                    raise Fault(CUresult.CUDA_ERROR_INVALID_VALUE, "rows overlap")
                to[:] = of

        return self._enqueued(hStream, copy) if height and width else (CUresult.CUDA_SUCCESS,)

    def cuMemsetD8Async(self, dstDevice: int, uc: int, N: int, hStream: int) -> tuple[Any, ...]:
        def fill() -> None:
            self.memory(int(dstDevice), N)[:] = uc

        return self._enqueued(hStream, fill)

    def cuStreamCreate(self, Flags: int) -> tuple[Any, ...]:
        if not self._current:
            return self._error(CUresult.CUDA_ERROR_INVALID_CONTEXT, "no context is current", None)
        if Flags != CUstream_flags.CU_STREAM_NON_BLOCKING:
            return self._error(CUresult.CUDA_ERROR_INVALID_VALUE, "the stream would wait for the default stream", None)
        handle = self._handle()
        self._queues[handle] = []
        return CUresult.CUDA_SUCCESS, handle

    def cuStreamDestroy(self, hStream: int) -> tuple[Any, ...]:
        if self._queues.pop(hStream, None) is None:
            return self._error(CUresult.CUDA_ERROR_INVALID_HANDLE, "no such stream")
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamSynchronize(self, hStream: int) -> tuple[Any, ...]:
        if self._captures:
            return self._refused("cuStreamSynchronize")
        if hStream not in self._queues:
            return self._error(CUresult.CUDA_ERROR_INVALID_HANDLE, "no such stream")
        try:
            self._drain()
        except Fault as fault:
            return self._error(fault.status, str(fault))
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamBeginCapture(self, hStream: int, mode: int) -> tuple[Any, ...]:
        if hStream in self._captures or mode != CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL:
            return self._error(CUresult.CUDA_ERROR_INVALID_VALUE, "the stream captures already, or a mode unknown here")
        self._captures[hStream] = []
        self.log.append("capture")
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamEndCapture(self, hStream: int) -> tuple[Any, ...]:
        work = self._captures.pop(hStream, None)
        if work is None:
            return self._error(CUresult.CUDA_ERROR_INVALID_VALUE, "the stream captures nothing", None)
        if hStream in self._broken:
            self._broken.discard(hStream)
            return self._error(CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the capture was broken", 0)
        handle = self._handle()
        self._graphs[handle] = work
        return CUresult.CUDA_SUCCESS, handle

    def cuGraphInstantiate(self, hGraph: int, flags: int) -> tuple[Any, ...]:  # noqa: ARG002
        handle = self._handle()
        self._executables[handle] = [*self._graphs[hGraph]]
        return CUresult.CUDA_SUCCESS, handle

    def cuGraphDestroy(self, hGraph: int) -> tuple[Any, ...]:
        del self._graphs[hGraph]
        return (CUresult.CUDA_SUCCESS,)

    def cuGraphExecDestroy(self, hGraphExec: int) -> tuple[Any, ...]:
        del self._executables[hGraphExec]
        return (CUresult.CUDA_SUCCESS,)

    def cuGraphLaunch(self, hGraphExec: int, hStream: int) -> tuple[Any, ...]:
        if hGraphExec not in self._executables:
            return self._error(CUresult.CUDA_ERROR_INVALID_HANDLE, "no such graph")
        self.log.append("launch graph")
        for work in self._executables[hGraphExec]:
            self.enqueue(hStream, work)
        return (CUresult.CUDA_SUCCESS,)

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        if not image.endswith(b"\0"):
            return self._error(CUresult.CUDA_ERROR_INVALID_VALUE, "the text does not end", None)
        handle = self._handle()
        self._modules.add(handle)
        return CUresult.CUDA_SUCCESS, handle

    def cuModuleUnload(self, hmod: int) -> tuple[Any, ...]:
        self._modules.remove(hmod)
        return (CUresult.CUDA_SUCCESS,)

    def cuModuleGetFunction(self, hmod: int, name: bytes) -> tuple[Any, ...]:
        if hmod not in self._modules or name.decode() not in self._kernels:
            return self._error(CUresult.CUDA_ERROR_NOT_FOUND, f"no kernel {name!r}", None)
        handle = self._handle()
        self._functions[handle] = self._kernels[name.decode()]
        return CUresult.CUDA_SUCCESS, handle

    def cuLaunchKernel(
        self,
        f: int,
        gridDimX: int,
        gridDimY: int,
        gridDimZ: int,
        blockDimX: int,
        blockDimY: int,
        blockDimZ: int,
        sharedMemBytes: int,  # noqa: ARG002
        hStream: int,
        kernelParams: Any,
        extra: int,  # noqa: ARG002
    ) -> tuple[Any, ...]:
        grid, block = (gridDimX, gridDimY, gridDimZ), (blockDimX, blockDimY, blockDimZ)
        if not all((*grid, *block)) or gridDimY >= 1 << 16 or gridDimZ >= 1 << 16 or blockDimX > 1024:
            return self._error(CUresult.CUDA_ERROR_INVALID_VALUE, f"a launch of {grid} blocks of {block} threads")
        values, types = kernelParams
        arguments = [kind(value) for value, kind in zip(values, types, strict=True)]
        kernel = self._functions[f]
        self.log.append("launch kernel")
        return self._enqueued(hStream, lambda: kernel(grid, block, *arguments))

    def _allocate(self, size: int, kind: str) -> tuple[Any, ...]:
        if self._captures:
            return (*self._refused("an allocation"), None)
        if not self._current:
            return self._error(CUresult.CUDA_ERROR_INVALID_CONTEXT, "no context is current", None)
        if size < 1:
            return self._error(CUresult.CUDA_ERROR_INVALID_VALUE, "no bytes", None)
        failing, self.fail_at = self.fail_at == 0, self.fail_at - 1
        if failing or self.allocated + size > self._total:
            return self._error(CUresult.CUDA_ERROR_OUT_OF_MEMORY, f"{size} bytes", None)
        # Fresh memory need not be zero; this is NaN in every float format.
        raw = np.full(size + 256, 0xFF, np.uint8)
        skip = -raw.ctypes.data % 256
        buffer = raw[skip : skip + size]
        address = buffer.ctypes.data
        self._buffers[address], self._kinds[address] = buffer, kind
        self.log.append(f"allocate {kind}")
        return CUresult.CUDA_SUCCESS, CUdeviceptr(address) if kind != "host" else address

    def _free(self, address: int, kinds: set[str]) -> tuple[Any, ...]:
        if self._captures:
            return self._refused("freeing memory")
        if self._kinds.get(address) not in kinds:
            return self._error(CUresult.CUDA_ERROR_INVALID_VALUE, f"{address:#x} is not allocated")
        if self._kinds[address] == "managed":
            self._checksums.pop(address, None)
        del self._buffers[address], self._kinds[address]
        return (CUresult.CUDA_SUCCESS,)

    def _enqueued(self, stream: int, work: Work) -> tuple[Any, ...]:
        try:
            self.enqueue(int(stream), work)
        except Fault as fault:
            return self._error(fault.status, str(fault))
        return (CUresult.CUDA_SUCCESS,)

    def _drain(self) -> None:
        """Execute all work."""
        if any(self._queues.values()):
            for address, checksum in self._managed_checksums().items():
                if self._checksums.get(address, checksum) != checksum:
                    raise Fault(CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, "the CPU wrote managed memory too early")
        for queue in self._queues.values():
            work, queue[:] = [*queue], []
            for one in work:
                one()

    def _managed_checksums(self) -> dict[int, int]:
        return {base: zlib.crc32(self._buffers[base].data) for base, kind in self._kinds.items() if kind == "managed"}

    def _host(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """Pinned memory: a copy from or to any other would not be asynchronous."""
        return self.memory(address, size)

    def _handle(self) -> int:
        self._next += 1
        return self._next

    def _refused(self, what: str) -> tuple[Any, ...]:
        self._broken |= self._captures.keys()
        return self._error(CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, f"{what} while a stream captures")

    def _error(self, status: int, what: str, *values: Any) -> tuple[Any, ...]:
        self.faults.append(what)
        return (status, *values)
