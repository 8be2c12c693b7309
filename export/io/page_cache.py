"""Drops pages that were read once from the system's page cache, to leave it to others.

A checkpoint of 15 GB would push everything else out of a small machine's memory. Direct I/O (see direct_io) bypasses
the cache; this is for the other files. It only advises the system: where advice is not supported, only speed changes.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from pathlib import Path

from edgekit.machine import memory_bytes

__all__ = ["TRAIL", "Trail", "forget", "is_large"]

TRAIL = 5 << 28
"""Bytes behind the reader that stay cached, 1.25 GiB: tensors are not read exactly in file order."""


def forget(path: Path, start: int = 0, length: int = 0) -> None:
    """Advise the system to drop a range of a file from its page cache.

    Args:
        path: The file.
        start: Offset of the range.
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
    """Whether this many bytes are too many to stay in memory: more than a quarter of what this process may use."""
    memory = memory_bytes()
    return memory is not None and total > memory // 4


class Trail:
    """Drops what was read from the page cache once the reader is far enough ahead.

    Args:
        total: Bytes that will be read. Files that fit in memory several times over stay cached, for an export to a
            second target.
    """

    def __init__(self, total: int) -> None:
        self._large = is_large(total)
        self._ranges: deque[tuple[Path, int, int]] = deque()
        self._length = 0

    def passed(self, path: Path, start: int, length: int) -> None:
        """Note that a range of a file was read."""
        if not self._large:
            return
        self._ranges.append((path, start, length))
        self._length += length
        while self._length > TRAIL:
            self._forget_oldest()

    def end(self) -> None:
        """Drop the rest, after the last read."""
        while self._ranges:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        path, start, length = self._ranges.popleft()
        self._length -= length
        forget(path, start, length)
