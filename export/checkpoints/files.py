"""Reads files with every offset and length checked against the file size.

Tensors are read with `pread`, not through a memory map: a file that shrinks or a disk that fails then raises an error
instead of a signal, and no page of a large file counts as this process's memory.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.bundle import hash_file
from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import HashProgress, SourceFile
from edgekit.export.io.block_cache import BlockCache
from edgekit.export.io.direct_io import DirectFile
from edgekit.export.io.page_cache import Trail, is_large

__all__ = ["CHUNK", "DOWNLOAD_AGAIN", "BoundedFile", "hash_files", "read_json", "read_small", "share_blocks"]

DOWNLOAD_AGAIN = "the download was cut short or the file was changed: fetch it again"
# Bytes per system call: macOS refuses 2 GiB and more.
_MAX_READ = 1 << 30
CHUNK = 1 << 20
"""Bytes of a chunk: it stays in the CPU cache between being read and being used."""
# Smaller reads go through the page cache: a norm is not worth a block.
_SMALL = 1 << 16


class BoundedFile:
    """A file open for reading; its size is taken once, at opening.

    Raises:
        ExportError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open_regular(path)
        self._open = True
        self.size = os.fstat(self._descriptor).st_size
        self._shared: tuple[BlockCache, DirectFile] | None = None

    @property
    def name(self) -> str:
        """The file's name without its folder, as messages show it."""
        return self.path.name

    def share(self, blocks: BlockCache) -> None:
        """Read through this block cache from now on, except for small reads."""
        self._shared = blocks, DirectFile(self._descriptor)

    def hash(self, progress: Callable[[int], None] | None = None) -> str:
        """Return the file's SHA-256.

        Args:
            progress: Called with the bytes of each chunk read.

        Raises:
            OSError: It cannot be read.
        """
        if self._shared is None:
            return hash_file(self.path, progress)[1]
        blocks, file = self._shared
        return blocks.sha256(file, self.size, progress)

    def fileno(self) -> int:
        """The file descriptor, for a memory map."""
        return self._descriptor

    def read(self, offset: int, length: int, what: str) -> npt.NDArray[np.uint8]:
        """Read bytes.

        Args:
            offset: From the start of the file.
            length: In bytes.
            what: What is read, for error messages: "tensor `x`".

        Returns:
            uint8 `[length]`.

        Raises:
            ExportError: The file ends early, or the disk fails.
        """
        self._check(offset, length, what)  # before memory is allocated
        data = np.empty(length, dtype=np.uint8)
        self.read_into(data, offset, what)
        return data

    def read_into(self, target: npt.NDArray[Any], offset: int, what: str) -> None:
        """Fill an array with bytes, without an intermediate copy.

        Args:
            target: Contiguous; all of its bytes are replaced.
            offset: From the start of the file.
            what: What is read, for error messages.

        Raises:
            ExportError: The file ends early, or the disk fails.
        """
        self._check(offset, target.nbytes, what)
        data = target.reshape(-1).view(np.uint8)
        if self._shared is None or data.size < _SMALL:
            self._fill(data.data, offset, what)
            return
        done = 0
        for chunk in self._from_blocks(*self._shared, offset, data.size, what):
            data[done : done + chunk.size] = chunk
            done += chunk.size

    def chunks(self, offset: int, length: int, what: str) -> Iterator[npt.NDArray[np.uint8]]:
        """Read bytes in chunks of at most `CHUNK`, without a copy where blocks are shared.

        Args:
            offset: From the start of the file.
            length: In bytes.
            what: What is read, for error messages.

        Raises:
            ExportError: The file ends early, or the disk fails.
        """
        self._check(offset, length, what)
        if self._shared is None or length < _SMALL:
            buffer = np.empty(min(length, CHUNK), np.uint8)
            for start in range(0, length, CHUNK):
                chunk = buffer[: length - start]
                self._fill(chunk.data, offset + start, what)
                yield chunk
            return
        for block in self._from_blocks(*self._shared, offset, length, what):
            yield from (block[start : start + CHUNK] for start in range(0, block.size, CHUNK))

    def _from_blocks(
        self, blocks: BlockCache, file: DirectFile, offset: int, length: int, what: str
    ) -> Iterator[npt.NDArray[np.uint8]]:
        done = 0
        try:
            for chunk in blocks.chunks(file, offset, length):
                done += chunk.size
                yield chunk
        except OSError as error:
            raise self._unreadable(what, error) from error
        if done < length:
            raise self.truncated(what)

    def read_columns(self, target: npt.NDArray[Any], offset: int, stride: int, what: str) -> None:
        """Fill the rows of a matrix from offsets that are `stride` bytes apart.

        Args:
            target: Contiguous `[rows, columns]`; all of its bytes are replaced.
            offset: Of the first row, from the start of the file.
            stride: In bytes; at least the size of a row of `target`.
            what: What is read, for error messages.

        Raises:
            ExportError: The file ends early, or the disk fails.
        """
        if not target.size:
            return
        rows = target.shape[0]
        length = target.nbytes // rows
        if length == stride:
            self.read_into(target, offset, what)
            return
        self._check(offset, (rows - 1) * stride + length, what)
        view = target.reshape(-1).view(np.uint8).data
        for row in range(rows):
            self._fill(view[row * length : (row + 1) * length], offset + row * stride, what)

    def _fill(self, view: memoryview, offset: int, what: str) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptor, [view[done : done + _MAX_READ]], offset + done)
            except OSError as error:
                raise self._unreadable(what, error) from error
            if not count:
                raise self.truncated(what)
            done += count

    def _unreadable(self, what: str, error: OSError) -> ExportError:
        return ExportError(f"{self.path} cannot be read at {what}: {error.strerror}")

    def _check(self, offset: int, length: int, what: str) -> None:
        if not 0 <= offset <= offset + length <= self.size:
            raise self.truncated(what)

    def truncated(self, what: str) -> ExportError:
        """Return the error for a file that ends before data that it announces."""
        return ExportError(
            f"{self.name} is truncated: its {self.size} bytes end before {what} does", hint=DOWNLOAD_AGAIN
        )

    def close(self) -> None:
        """Close it; closing twice does nothing."""
        if self._open:
            self._open = False
            if self._shared is not None:
                self._shared[1].close()
            os.close(self._descriptor)


def share_blocks(files: Sequence[BoundedFile]) -> BlockCache | None:
    """Let files share a block cache if together they are large for this machine; the caller closes the cache."""
    if not is_large(sum(file.size for file in files)):
        return None
    blocks = BlockCache()
    for file in files:
        file.share(blocks)
    return blocks


def _open_regular(path: Path) -> int:
    """Open a regular file for reading: a pipe or a device may never end, or never open."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ExportError(f"{path} cannot be opened: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ExportError(f"{path} is not a regular file")
    return descriptor


def read_small(path: Path, limit: int = 1 << 26) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises:
        ExportError: It is larger, or cannot be read.
    """
    try:
        with open(_open_regular(path), "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise ExportError(f"{path} is larger than the limit of {limit} bytes")
    return data


def read_json(path: Path, limit: int = 1 << 26) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ExportError: It cannot be read, is too large, or is not a JSON object.
    """
    try:
        value = json.loads(read_small(path, limit))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not JSON: {' '.join(str(error).split())[:200]}", hint=DOWNLOAD_AGAIN) from error
    if not isinstance(value, dict):
        raise ExportError(f"{path} is not a JSON object", hint=DOWNLOAD_AGAIN)
    return value


def hash_files(
    paths: Sequence[Path], files: Sequence[BoundedFile], progress: HashProgress | None = None
) -> tuple[SourceFile, ...]:
    """Hash files in chunks, in order.

    Args:
        paths: Files that are not open.
        files: Files that are; they come after `paths`.
        progress: Called with the bytes hashed so far and the total.

    Raises:
        ExportError: One cannot be read.
    """
    found: list[SourceFile] = []
    done = 0
    path = Path()
    try:
        total = sum(path.stat().st_size for path in paths) + sum(file.size for file in files)
        trail = Trail(total)

        def hashed(count: int) -> None:
            nonlocal done
            trail.passed(path, done - start, count)
            done += count
            if progress:
                progress(done, total)

        for path in paths:
            start = done
            found.append(SourceFile(path.name, *hash_file(path, hashed)))
        for file in files:
            path, start = file.path, done
            found.append(SourceFile(path.name, file.size, file.hash(hashed)))
        trail.end()
    except OSError as error:
        raise ExportError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    return tuple(found)
