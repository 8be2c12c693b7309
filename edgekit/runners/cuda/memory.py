"""Memory that the GPU computes in: its own, and buffers that the CPU writes and reads too."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError
from edgekit.runners.cuda.driver import Device
from edgekit.runners.cuda.stream import Stream

__all__ = ["ALIGNMENT", "DeviceMemory", "SharedBuffer", "aligned"]

ALIGNMENT = 256
"""Bytes to which TensorRT wants the address of every tensor aligned. The driver aligns each allocation so."""


def aligned(size: int) -> int:
    """Round a number of bytes up to `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class DeviceMemory:
    """Memory of the GPU; on a Jetson, a part of the system's.

    Args:
        device: The GPU.
        size: Bytes; 0 allocates one, so that there is an address.

    Raises:
        RunnerError: There is not enough.
    """

    def __init__(self, device: Device, size: int) -> None:
        self._device = device
        self.size = max(size, 1)
        self._pointer = device.call("cuMemAlloc", self.size)
        self.address = int(self._pointer)

    def close(self) -> None:
        """Free the memory. Work that uses it must have ended."""
        if self.address:
            self._device.call("cuMemFree", self._pointer)
            self.address = 0


class SharedBuffer:
    """Bytes that the CPU and the GPU read and write in turns.

    On a Jetson this is one piece of memory, and `upload` and `download` do nothing. The CPU must not touch it there
    while the GPU computes. Elsewhere it is a buffer on each side, and they copy.

    Args:
        device: The GPU.
        size: Bytes.

    Attributes:
        address: What the GPU uses.
        host: What the CPU uses, uint8 `[size]`.

    Raises:
        RunnerError: There is not enough memory.
    """

    def __init__(self, device: Device, size: int) -> None:
        self._device = device
        self.size = max(size, 1)
        self._host: Any = None
        if device.integrated:
            flag = device.api.CUmemAttach_flags.CU_MEM_ATTACH_GLOBAL
            self._pointer = device.call("cuMemAllocManaged", self.size, int(flag))
            host_address = int(self._pointer)
        else:
            self._pointer = device.call("cuMemAlloc", self.size)
            try:
                self._host = device.call("cuMemHostAlloc", self.size, 0)
            except RunnerError:
                device.call("cuMemFree", self._pointer)
                raise
            host_address = int(self._host)
        self.address = int(self._pointer)
        self._host_address = host_address
        raw = (ctypes.c_uint8 * self.size).from_address(host_address)
        self.host: npt.NDArray[np.uint8] = np.ctypeslib.as_array(raw)
        self.host[:] = 0

    def view(self, start: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return the CPU's side from byte `start` on as an array."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        return self.host[start : start + size].view(kind).reshape(shape)

    def upload(self, stream: Stream, start: int, size: int) -> None:
        """Enqueue a copy of a part to the GPU, where it is another memory."""
        if self._host is not None:
            self._device.call(
                "cuMemcpyHtoDAsync", self.address + start, self._host_address + start, size, stream.handle
            )

    def download(self, stream: Stream, start: int, size: int) -> None:
        """Enqueue a copy of a part to the CPU, where it is another memory."""
        if self._host is not None:
            self._device.call(
                "cuMemcpyDtoHAsync", self._host_address + start, self.address + start, size, stream.handle
            )

    def close(self) -> None:
        """Free the memory; no array of it may be used afterwards."""
        if not self.address:
            return
        self.host = np.empty(0, np.uint8)
        self._device.call("cuMemFree", self._pointer)
        if self._host is not None:
            self._device.call("cuMemFreeHost", self._host)
        self.address = 0
