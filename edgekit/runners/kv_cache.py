"""KV cache of all sequence slots, in buffers with fixed addresses that a graph reads and writes in place.

Address space is reserved at once; memory is committed page by page as positions are first written, and returned to the
system per slot. The number of positions in use is tracked by the runner.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError
from edgekit.machine import available_bytes

__all__ = ["KvCache"]


class KvCache:
    """Keys and values of every layer: `arrays`, each `[slots, heads, capacity, head_dim]`.

    Args:
        count: Number of arrays: two per layer.
        slots: Number of sequence slots.
        heads: Number of KV heads.
        positions: Minimum capacity of a slot; rounded up so that slots share no page.
        head_dim: Elements per head.
        dtype: Element type.

    Raises:
        RunnerError: The system has no address space for it.
    """

    def __init__(
        self, count: int, slots: int, *, heads: int, positions: int, head_dim: int, dtype: npt.DTypeLike
    ) -> None:
        self.dtype = np.dtype(dtype)
        position = heads * head_dim * self.dtype.itemsize
        step = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, position)
        self.capacity = -(-positions // step) * step
        self._slot_bytes = self.capacity * position
        shape = (slots, heads, self.capacity, head_dim)
        self._heads = (heads, head_dim)
        self.bytes_per_token = count * position
        try:
            self._maps = [_reserve(slots * self._slot_bytes) for _ in range(count)]
        except (OSError, OverflowError) as error:
            raise RunnerError(
                f"not enough memory for the KV cache of {slots} sequence slots of {positions} tokens",
                hint=self._fitting(slots, positions),
            ) from error
        self.arrays: list[npt.NDArray[Any]] = [
            np.frombuffer(memory, self.dtype).reshape(shape) for memory in self._maps
        ]

    def close(self) -> None:
        """Drop all memory; the system gets it back once no other reference to an array remains."""
        self.arrays.clear()
        self._maps.clear()

    def views(self, slot: int) -> list[npt.NDArray[Any]]:
        """Return the slot's part of each array, `[heads, positions, head_dim]`."""
        return [array[slot] for array in self.arrays]

    def release(self, slot: int) -> None:
        """Return a slot's memory to the system; its contents are lost."""
        if _DISCARD is not None:
            for memory in self._maps:
                memory.madvise(_DISCARD, slot * self._slot_bytes, self._slot_bytes)

    def read(self, slot: int, start: int, stop: int) -> bytes:
        """Copy positions `start:stop`, as `[arrays, heads, positions, head_dim]`."""
        # Only the positions of one head are contiguous; join copies each of these parts once.
        return b"".join(head[start:stop].data for view in self.views(slot) for head in view)

    def write(self, slot: int, start: int, count: int, data: memoryview) -> None:
        """Write `count` positions, in the layout of `read`, at `start`."""
        heads, head_dim = self._heads
        rows = np.frombuffer(data, self.dtype).reshape(len(self.arrays), heads, count, head_dim)
        for view, part in zip(self.views(slot), rows, strict=True):
            view[:, start : start + count] = part

    def _fitting(self, slots: int, positions: int) -> str:
        """What the available memory has room for; a limit of the process or the system may be lower."""
        advice = "use fewer sequence slots or a shorter context"
        tokens = (available_bytes() or 0) // self.bytes_per_token
        if not 0 < tokens < slots * positions:
            return advice
        return f"{advice}: there is memory for {tokens} tokens, or {tokens // positions} slots of this length"


# macOS reclaims MADV_FREE pages when it needs them. Systems with neither keep the memory until the process ends.
_DISCARD: int | None = getattr(mmap, "MADV_FREE" if sys.platform == "darwin" else "MADV_DONTNEED", None)
_SMALL_PAGES: int | None = getattr(mmap, "MADV_NOHUGEPAGE", None)


def _reserve(size: int) -> mmap.mmap:
    """Map zeros that take no memory before they are written."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
    # A slot's first positions of different heads are far apart: with huge pages, a short chat would take megabytes for
    # each head.
    if _SMALL_PAGES is not None:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(_SMALL_PAGES)
    return memory
