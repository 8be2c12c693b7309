"""A file written from front to back, hashed on the way by a thread of its own that also hands it to the disk.

It knows no format.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.export.buffers import Buffers
from edgekit.export.direct_io import BLOCK, DirectFile, write_plainly

__all__ = ["CACHED", "StreamedFile"]

CACHED = 1 << 28
"""The first bytes of an artifact go through the page cache, 256 MiB: one that is no larger is found there by whoever
reads it next."""
# Blocks that wait for the disk before whoever writes has to.
_WAITING = 6


class StreamedFile:
    """Opens a file for writing.

    Args:
        path: A file that is there already is replaced.
        before: Bytes of the same artifact that are in other files.
        hashed: Whether to hash it; not, where its beginning is replaced in the end.
    """

    def __init__(self, path: Path, *, before: int = 0, hashed: bool = True) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._file = DirectFile(self._descriptor)
        self._cached = CACHED - before
        self._open = True
        self._buffers = Buffers(_WAITING + 2)
        self._block = self._buffers.take(BLOCK)
        self._size = 0
        self._digest = hashlib.sha256() if hashed else None
        self._behind = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._moving: deque[Future[None]] = deque()

    def write(self, part: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            OSError: The disk is full, or fails, now or at an earlier part.
        """
        data = np.frombuffer(part, np.uint8)
        while data.size:
            at = self._size % BLOCK
            taken = data[: BLOCK - at]
            self._block[at : at + taken.size] = taken
            self._size += taken.size
            data = data[taken.size :]
            if self._size % BLOCK == 0:
                while len(self._moving) >= _WAITING:
                    self._moving.popleft().result()
                self._moving.append(self._behind.submit(self._move, self._block, self._size - BLOCK))
                self._block = self._buffers.take(BLOCK)

    def tell(self) -> int:
        """How many bytes were written."""
        return self._size

    def flush(self) -> None:
        """Hand all bytes to the system.

        Raises:
            OSError: The disk is full, or fails.
        """
        while self._moving:
            self._moving.popleft().result()
        write_plainly(self._descriptor, self._rest(), self._size - self._size % BLOCK)

    def replace(self, data: bytes, offset: int) -> None:
        """Overwrite bytes that were flushed, which a hash would not know of.

        Raises:
            OSError: The disk fails.
        """
        values = np.frombuffer(data, np.uint8)
        write_plainly(self._descriptor, values, offset)
        # The last block is written anew when more of it is there.
        first = self._size - self._size % BLOCK
        kept = values[max(0, first - offset) :]
        self._block[max(0, offset - first) :][: kept.size] = kept

    def close(self) -> str:
        """Close the file, if it is not closed already, and return its SHA-256, or nothing if it was not hashed.

        Raises:
            OSError: The disk is full, or fails; the file is closed all the same.
        """
        if self._open:
            self._open = False
            try:
                self.flush()
                if self._digest is not None:
                    self._digest.update(self._rest().data)
            finally:
                self._behind.shutdown(cancel_futures=True)
                self._file.close()
                os.close(self._descriptor)
        return "" if self._digest is None else self._digest.hexdigest()

    def _rest(self) -> npt.NDArray[np.uint8]:
        return self._block[: self._size % BLOCK]

    def _move(self, block: npt.NDArray[np.uint8], offset: int) -> None:
        if self._digest is not None:
            self._digest.update(block.data)
        if offset < self._cached:
            write_plainly(self._descriptor, block, offset)
        else:
            self._file.write(block, offset)
