"""Memory that is used again: the codes of one matrix after another, without asking the system for new pages.

A system zeroes every page that it gives; for the codes of a whole model that is as much writing as the model has
weights.
"""

from __future__ import annotations

import mmap
import sys
import weakref
from collections import deque
from threading import Lock

import numpy as np
import numpy.typing as npt

__all__ = ["Buffers"]

# How many times as large as what is asked for a free one may be: the memory of the token table is not for a small
# matrix, which would still be in it when the output head wants it.
_TIMES = 8


class Buffers:
    """Gives arrays, and takes their memory back when the last view of one is gone.

    Args:
        kept: Free ones that are kept, the largest.
    """

    def __init__(self, kept: int = 3) -> None:
        self._kept = kept
        self._free: list[mmap.mmap] = []
        # A buffer comes back whenever an array dies, which may be within `take`: here no lock is needed.
        self._returned: deque[mmap.mmap] = deque()
        self._lock = Lock()

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """Return an array of this size, with whatever stands in it."""
        with self._lock:
            while self._returned:
                self._free.append(self._returned.popleft())
            self._free = sorted(self._free, key=len)[-self._kept :]
            buffer = min((free for free in self._free if size <= len(free) <= _TIMES * size), key=len, default=None)
            if buffer is not None:
                self._free.remove(buffer)
        if buffer is None:
            buffer = _memory(size)
        # Views of an array refer to it, and not to its memory, because that belongs to no array.
        array = np.frombuffer(buffer, np.uint8, size)
        weakref.finalize(array, self._returned.append, buffer).atexit = False
        return array


def _memory(size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, max(1, size))
    memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
