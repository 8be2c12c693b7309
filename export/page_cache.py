"""Leaves the system's page cache to others: what is read once need not stay in memory.

A checkpoint of 15 GB would push everything else out of a small machine's memory. What is read past the cache (see
direct_io) is not in it; this is for files that are not. It only gives advice: where the system takes none, nothing
changes but speed.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from pathlib import Path

__all__ = ["TRAIL", "Trail", "forget", "is_large"]

TRAIL = 5 << 28
"""Bytes behind the reader that are kept, 1.25 GiB: tensors are not read exactly in the order of the files."""


def forget(path: Path, start: int = 0, length: int = 0) -> None:
    """Let the system drop a part of a file from its page cache.

    Args:
        path: The file.
        start: Where the part begins.
        length: In bytes; 0 is up to the end.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def is_large(total: int) -> bool:
    """Whether so many bytes are too many to stay in this machine's memory, more than a quarter of it."""
    return total > _memory_bytes() // 4


class Trail:
    """Forgets what was read once it is far enough behind.

    Args:
        total: Bytes that will be read. What fits memory several times over is not forgotten: whoever exports it for
            a second target finds it there.
    """

    def __init__(self, total: int) -> None:
        self._large = is_large(total)
        self._parts: deque[tuple[Path, int, int]] = deque()
        self._length = 0

    def passed(self, path: Path, start: int, length: int) -> None:
        """Note that a part of a file was read."""
        if not self._large:
            return
        self._parts.append((path, start, length))
        self._length += length
        while self._length > TRAIL:
            self._forget_oldest()

    def end(self) -> None:
        """Forget the rest: nothing is read any more."""
        while self._parts:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        path, start, length = self._parts.popleft()
        self._length -= length
        forget(path, start, length)


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 62
