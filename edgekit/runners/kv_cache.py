"""KV cache of all sequence slots in buffers whose addresses never change: what a graph reads and writes in place.

Memory is reserved at once, taken from the system page by page as positions are first written, and given back slot by
slot. It does not know how many positions of a slot are in use.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["KvCache"]


class KvCache:
    """Keys and values of every layer: `arrays`, each `[slots, heads, capacity, head_dim]`.

    Args:
        count: Of arrays: two for each layer.
        slots: Sequence slots.
        heads: KV heads.
        positions: Of a slot, at least; the capacity is rounded up so that slots share no page.
        head_dim: Elements of a head.
        dtype: Of an element.
    """

    def __init__(
        self, count: int, slots: int, *, heads: int, positions: int, head_dim: int, dtype: npt.DTypeLike
    ) -> None:
        self._dtype = np.dtype(dtype)
        position = heads * head_dim * self._dtype.itemsize
        step = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, position)
        self.capacity = -(-positions // step) * step
        self._slot_bytes = self.capacity * position
        shape = (slots, heads, self.capacity, head_dim)
        self._heads = (heads, head_dim)
        self._maps = [_reserve(slots * self._slot_bytes) for _ in range(count)]
        self.arrays: list[npt.NDArray[Any]] = [
            np.frombuffer(memory, self._dtype).reshape(shape) for memory in self._maps
        ]
        self.bytes_per_token = count * position

    def close(self) -> None:
        """Let go of all memory; the system has it back once nobody else holds an array."""
        self.arrays.clear()
        self._maps.clear()

    def release(self, slot: int) -> None:
        """Give a slot's memory back to the system; what it held is lost."""
        if _GIVE_BACK is not None:
            for memory in self._maps:
                memory.madvise(_GIVE_BACK, slot * self._slot_bytes, self._slot_bytes)

    def read(self, slot: int, start: int, stop: int) -> bytes:
        """Positions `start:stop`, as `[arrays, heads, positions, head_dim]`."""
        # What lies together is one head's: joined, all of it is copied once.
        return b"".join(head[start:stop].data for array in self.arrays for head in array[slot])

    def write(self, slot: int, start: int, count: int, data: memoryview) -> None:
        """Put `count` positions, as `read` gave them, at `start`."""
        heads, head_dim = self._heads
        rows = np.frombuffer(data, self._dtype).reshape(len(self.arrays), heads, count, head_dim)
        for array, part in zip(self.arrays, rows, strict=True):
            array[slot, :, start : start + count] = part


# macOS takes freed pages back when it needs them; where a system has neither, memory stays until the process ends.
_GIVE_BACK: int | None = getattr(mmap, "MADV_FREE" if sys.platform == "darwin" else "MADV_DONTNEED", None)
_SMALL_PAGES: int | None = getattr(mmap, "MADV_NOHUGEPAGE", None)


def _reserve(size: int) -> mmap.mmap:
    """Zeros that take no memory before they are written."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
    # A slot touches the first positions of each head, far apart: with huge pages a short chat would take megabytes
    # for each of them.
    if _SMALL_PAGES is not None:
        with contextlib.suppress(OSError):  # a kernel that has no huge pages
            memory.madvise(_SMALL_PAGES)
    return memory
