"""Loads our own kernels: PTX, which the driver compiles for its GPU, made from `csrc/` by `scripts/compile_ptx.py`."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from edgekit.runners.cuda.driver import Device
from edgekit.runners.cuda.stream import Stream

__all__ = ["Kernel", "KvScatter", "Module", "ptx"]

_FOLDER = Path(__file__).parent / "csrc"
_THREADS = 256
_VECTOR = 16
"""Bytes that a thread copies at a time."""


def ptx(name: str) -> bytes:
    """Read the PTX of a kernel source in `csrc/`, by the name without suffix."""
    # The driver reads text up to a zero byte.
    return (_FOLDER / f"{name}.ptx").read_bytes() + b"\0"


class Module:
    """Kernels from PTX or from a cubin.

    Raises:
        RunnerError: The driver does not take the code.
    """

    def __init__(self, device: Device, image: bytes) -> None:
        self._device = device
        self._handle = device.call("cuModuleLoadData", image)

    def kernel(self, name: str) -> Kernel:
        """Return a kernel by its name, which the source declares `extern "C"`."""
        return Kernel(self._device, self._device.call("cuModuleGetFunction", self._handle, name.encode()))

    def close(self) -> None:
        """Unload the code."""
        if self._handle is not None:
            self._device.call("cuModuleUnload", self._handle)
            self._handle = None


class Kernel:
    """A kernel that can be launched."""

    def __init__(self, device: Device, function: Any) -> None:
        self._device = device
        self._function = function

    def launch(
        self, stream: Stream, grid: tuple[int, int, int], threads: int, arguments: list[tuple[int, Any]]
    ) -> None:
        """Enqueue a launch.

        Args:
            stream: The stream.
            grid: Blocks in x, y and z.
            threads: Threads of a block, in x.
            arguments: Each parameter's value with its ctypes type.
        """
        values, types = (tuple(part) for part in zip(*arguments, strict=True))
        self._device.call("cuLaunchKernel", self._function, *grid, threads, 1, 1, 0, stream.handle, (values, types), 0)


class KvScatter:
    """Puts a step's new rows of keys and values behind those in the KV cache.

    Positions are read from the GPU's memory when it runs, so that a captured launch is valid for any.
    """

    def __init__(self, device: Device) -> None:
        self._module = Module(device, ptx("kv_rows"))
        self._kernel = self._module.kernel("scatter_kv_rows")

    def enqueue(
        self,
        stream: Stream,
        *,
        sources: int,
        caches: int,
        starts: int,
        tensors: int,
        batch: int,
        heads: int,
        rows: int,
        row_bytes: int,
        stride: int,
        offset: int,
    ) -> None:
        """Enqueue the copy of `[batch, heads, rows, row_bytes]` of every tensor.

        Args:
            stream: The stream.
            sources: Address of the addresses of the new rows, uint64 `[tensors]`.
            caches: Address of the addresses of the caches, uint64 `[tensors]`.
            starts: Address of the position of each sequence's first new row, int64 `[batch]`.
            tensors: Number of caches: two per layer.
            batch: Sequences, which lie one behind the other in a cache.
            heads: KV heads.
            rows: New rows of each head.
            row_bytes: Bytes of a row, a multiple of 16.
            stride: Positions from one head of a cache to the next. Rows from there on are dropped.
            offset: Bytes from the beginning of each cache to the first sequence.
        """
        if row_bytes % _VECTOR:
            raise ValueError(f"rows of {row_bytes} bytes are not a multiple of {_VECTOR}")
        vectors = row_bytes // _VECTOR
        u32, u64 = ctypes.c_uint32, ctypes.c_uint64
        self._kernel.launch(
            stream,
            (-(-rows * vectors // _THREADS), batch * heads, tensors),
            _THREADS,
            [
                (sources, u64),
                (caches, u64),
                (starts, u64),
                (offset, u64),
                (rows, u32),
                (vectors, u32),
                (heads, u32),
                (stride, u32),
            ],
        )

    def close(self) -> None:
        """Unload the code."""
        self._module.close()
