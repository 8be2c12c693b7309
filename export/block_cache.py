"""Blocks of large files, kept as long as someone may want the same bytes once more.

An export reads all of a checkpoint twice: a thread hashes its files from front to back, and others quantize its
tensors. They go through the files side by side, so a few hundred megabytes of blocks spare the second reading. It is
what the page cache would do, in memory that is used again (see direct_io).
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

from edgekit.export.buffers import Buffers
from edgekit.export.direct_io import BLOCK, DirectFile

__all__ = ["BlockCache", "sha256_of"]

Bytes = npt.NDArray[np.uint8]

# Blocks that are kept, 256 MiB; and how many are read ahead of whoever goes through a file from front to back.
_KEPT, _AHEAD = 64, 4


class BlockCache:
    """Reads blocks, each once while it is kept. Threads may share it.

    Args:
        kept: How many blocks stay in memory; beyond, the one that was read first goes.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._buffers = Buffers(kept)
        self._blocks: OrderedDict[tuple[DirectFile, int], Future[Bytes]] = OrderedDict()
        self._lock = Lock()
        self._reading = ThreadPoolExecutor(_AHEAD, thread_name_prefix="read")

    def parts(self, file: DirectFile, offset: int, length: int) -> Iterator[Bytes]:
        """Some bytes of a file, block by block; fewer where the file ends.

        Raises:
            OSError: The disk fails.
        """
        stop = offset + length
        while offset < stop:
            block = self._block(file, offset // BLOCK)
            part = block[offset % BLOCK :][: stop - offset]
            if not part.size:
                return
            yield part
            offset += part.size

    def stream(self, file: DirectFile, size: int) -> Iterator[Bytes]:
        """All of a file of this size from front to back, read ahead; less where it ends before.

        Raises:
            OSError: The disk fails.
        """
        count = -(-size // BLOCK)
        for number in range(count):
            for ahead in range(number + 1, min(number + 1 + _AHEAD, count)):
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
        for part in self.stream(file, size):
            digest.update(part.data)
            if progress:
                progress(part.size)
        return digest.hexdigest()

    def close(self) -> None:
        """Forget all, once nothing is being read any more."""
        self._reading.shutdown(cancel_futures=True)
        self._blocks.clear()

    def _block(self, file: DirectFile, number: int) -> Bytes:
        future, missing = self._entry(file, number)
        if missing:
            self._read(file, number, future)
        return future.result()

    def _entry(self, file: DirectFile, number: int) -> tuple[Future[Bytes], bool]:
        """The block, or its promise; and whether it is the caller who has to keep that."""
        with self._lock:
            future = self._blocks.get((file, number))
            if future is not None:
                return future, False
            future = self._blocks[file, number] = Future()
            if len(self._blocks) > self._kept:
                self._blocks.popitem(last=False)
            return future, True

    def _read(self, file: DirectFile, number: int, future: Future[Bytes]) -> None:
        try:
            block = self._buffers.take(BLOCK)
            future.set_result(block[: file.read(block, number * BLOCK)])
        except BaseException as error:  # noqa: BLE001  it is raised where the block is wanted
            with self._lock:
                self._blocks.pop((file, number), None)
            future.set_exception(error)


def sha256_of(path: Path) -> str:
    """Hash a file that nobody else reads.

    Raises:
        OSError: It cannot be read.
    """
    blocks = BlockCache(2 * _AHEAD)
    descriptor = os.open(path, os.O_RDONLY)
    file = DirectFile(descriptor)
    try:
        return blocks.sha256(file, path.stat().st_size)
    finally:
        blocks.close()
        file.close()
        os.close(descriptor)
