"""Reuses memory for large arrays, such as the codes of one matrix after another, instead of allocating new pages.

The system zeroes every page that it allocates; for the codes of a full model, that writes as many bytes as the model
has weights.
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

# A free buffer may be at most this many times the requested size: otherwise a small matrix could occupy the memory of
# the token table when the output head needs it.
_MAX_OVERSIZE = 8


class Buffers:
    """Hands out arrays, and reclaims their memory when the last view of one is gone.

    Args:
        max_free: Free buffers to keep; the largest ones are kept.
    """

    def __init__(self, max_free: int = 3) -> None:
        self._max_free = max_free
        self._free: list[mmap.mmap] = []
        # A buffer returns when an array is freed, which may happen within `take`: a deque needs no lock.
        self._returned: deque[mmap.mmap] = deque()
        self._lock = Lock()

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """Return an uninitialized array of this size."""
        with self._lock:
            while self._returned:
                self._free.append(self._returned.popleft())
            self._free = sorted(self._free, key=len)[-self._max_free :]
            buffer = min(
                (free for free in self._free if size <= len(free) <= _MAX_OVERSIZE * size), key=len, default=None
            )
            if buffer is not None:
                self._free.remove(buffer)
        if buffer is None:
            buffer = _allocate(size)
        # Views keep this array alive and not its memory, because the memory is not an array itself.
        array = np.frombuffer(buffer, np.uint8, size)
        weakref.finalize(array, self._returned.append, buffer).atexit = False
        return array


def _allocate(size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, max(1, size))
    memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
