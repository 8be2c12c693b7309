"""Caches blocks of large files between the threads that read them.

An export reads all of a checkpoint twice: one thread hashes its files from front to back, and others quantize its
tensors. They advance together, so a few hundred megabytes of blocks avoid the second read. This does the job of the
page cache, in memory that is reused (see direct_io).
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from edgekit.export.io.buffers import Buffers
from edgekit.export.io.direct_io import BLOCK, DirectFile

__all__ = ["BlockCache", "sha256_of"]

Bytes = npt.NDArray[np.uint8]

# Blocks in the cache, 256 MiB; and blocks read ahead of a sequential reader.
_CAPACITY, _READ_AHEAD = 64, 4


class BlockCache:
    """Reads each block once while it is cached. Thread-safe.

    Args:
        capacity: Blocks kept in memory; beyond that, the one that was read first is evicted.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._buffers = Buffers(capacity)
        self._blocks: OrderedDict[tuple[DirectFile, int], Future[Bytes]] = OrderedDict()
        self._lock = Lock()
        self._reading = ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="read")

    def chunks(self, file: DirectFile, offset: int, length: int) -> Iterator[Bytes]:
        """Read a range of a file block by block; less where the file ends.

        Raises:
            OSError: The disk fails.
        """
        stop = offset + length
        while offset < stop:
            block = self._block(file, offset // BLOCK)
            chunk = block[offset % BLOCK :][: stop - offset]
            if not chunk.size:
                return
            yield chunk
            offset += chunk.size

    def stream(self, file: DirectFile, size: int) -> Iterator[Bytes]:
        """Read a file of this size from front to back, with read-ahead; less where it ends early.

        Raises:
            OSError: The disk fails.
        """
        count = -(-size // BLOCK)
        for number in range(count):
            for ahead in range(number + 1, min(number + 1 + _READ_AHEAD, count)):
                future, missing = self._entry(file, ahead)
                if missing:
                    self._reading.submit(self._read, file, ahead, future)
            yield self._block(file, number)

    def sha256(self, file: DirectFile, size: int, progress: Callable[[int], None] | None = None) -> str:
        """Hash a file of this size.

        Args:
            file: The file.
            size: In bytes.
            progress: Called with the bytes of each block.

        Raises:
            OSError: The disk fails.
        """
        digest = hashlib.sha256()
        for block in self.stream(file, size):
            digest.update(block.data)
            if progress:
                progress(block.size)
        return digest.hexdigest()

    def close(self) -> None:
        """Drop all blocks, after pending reads."""
        self._reading.shutdown(cancel_futures=True)
        self._blocks.clear()

    def _block(self, file: DirectFile, number: int) -> Bytes:
        future, missing = self._entry(file, number)
        if missing:
            self._read(file, number, future)
        return future.result()

    def _entry(self, file: DirectFile, number: int) -> tuple[Future[Bytes], bool]:
        """The block's future, and whether the caller has to read the block."""
        with self._lock:
            future = self._blocks.get((file, number))
            if future is not None:
                return future, False
            future = self._blocks[file, number] = Future()
            if len(self._blocks) > self._capacity:
                self._blocks.popitem(last=False)
            return future, True

    def _read(self, file: DirectFile, number: int, future: Future[Bytes]) -> None:
        try:
            block = self._buffers.take(BLOCK)
            future.set_result(block[: file.read(block, number * BLOCK)])
        except BaseException as error:  # noqa: BLE001  it is raised where the block is used
            with self._lock:
                self._blocks.pop((file, number), None)
            future.set_exception(error)


def sha256_of(path: Path) -> str:
    """Hash a file that has no other reader.

    Raises:
        OSError: It cannot be read.
    """
    blocks = BlockCache(2 * _READ_AHEAD)
    descriptor = os.open(path, os.O_RDONLY)
    file = DirectFile(descriptor)
    try:
        return blocks.sha256(file, path.stat().st_size)
    finally:
        blocks.close()
        file.close()
        os.close(descriptor)
