"""A file written sequentially; a background thread hashes it and writes it to disk."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.export.io.buffers import Buffers
from edgekit.export.io.direct_io import BLOCK, DirectFile, write_plainly

__all__ = ["CACHED", "StreamedFile"]

CACHED = 1 << 28
"""The first 256 MiB of an artifact go through the page cache, so that the next reader of a small artifact finds it
there."""
# Blocks that may wait for the disk before `write` blocks.
_MAX_PENDING = 6


class StreamedFile:
    """Opens a file for writing.

    Args:
        path: The file; an existing one is replaced.
        before: Bytes of the same artifact in earlier files.
        hashed: Whether to hash the file; false if its start is replaced in the end.
    """

    def __init__(self, path: Path, *, before: int = 0, hashed: bool = True) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._file = DirectFile(self._descriptor)
        self._cached = CACHED - before
        self._open = True
        self._buffers = Buffers(_MAX_PENDING + 2)
        self._block = self._buffers.take(BLOCK)
        self._size = 0
        self._digest = hashlib.sha256() if hashed else None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending: deque[Future[None]] = deque()

    def write(self, part: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            OSError: The disk is full or failed, for this part or an earlier one.
        """
        data = np.frombuffer(part, np.uint8)
        while data.size:
            start = self._size % BLOCK
            part_of_block = data[: BLOCK - start]
            self._block[start : start + part_of_block.size] = part_of_block
            self._size += part_of_block.size
            data = data[part_of_block.size :]
            if self._size % BLOCK == 0:
                while len(self._pending) >= _MAX_PENDING:
                    self._pending.popleft().result()
                self._pending.append(self._worker.submit(self._flush_block, self._block, self._size - BLOCK))
                self._block = self._buffers.take(BLOCK)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._size

    def flush(self) -> None:
        """Write all bytes to the file.

        Raises:
            OSError: The disk is full or failed.
        """
        while self._pending:
            self._pending.popleft().result()
        write_plainly(self._descriptor, self._rest(), self._size - self._size % BLOCK)

    def replace(self, data: bytes, offset: int) -> None:
        """Overwrite flushed bytes; only for files that are not hashed.

        Raises:
            OSError: The disk failed.
        """
        values = np.frombuffer(data, np.uint8)
        write_plainly(self._descriptor, values, offset)
        # The last block is written again when it is complete, so it needs the new bytes too.
        first = self._size - self._size % BLOCK
        tail = values[max(0, first - offset) :]
        self._block[max(0, offset - first) :][: tail.size] = tail

    def close(self) -> str:
        """Close the file unless it is closed already; return its SHA-256, or "" if it is not hashed.

        Raises:
            OSError: The disk is full or failed; the file is closed nevertheless.
        """
        if self._open:
            self._open = False
            try:
                self.flush()
                if self._digest is not None:
                    self._digest.update(self._rest().data)
            finally:
                self._worker.shutdown(cancel_futures=True)
                self._file.close()
                os.close(self._descriptor)
        return "" if self._digest is None else self._digest.hexdigest()

    def _rest(self) -> npt.NDArray[np.uint8]:
        return self._block[: self._size % BLOCK]

    def _flush_block(self, block: npt.NDArray[np.uint8], offset: int) -> None:
        if self._digest is not None:
            self._digest.update(block.data)
        if offset < self._cached:
            write_plainly(self._descriptor, block, offset)
        else:
            self._file.write(block, offset)
