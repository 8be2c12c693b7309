"""A file read with every offset and length checked against its size.

Tensors are read with `pread` and not through a map: a file that shrinks or a disk that fails becomes an error and
not a signal, and no page of a large file stays counted as this process's memory. It knows no format.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.bundle import hash_file
from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import HashProgress, SourceFile
from edgekit.export.page_cache import Trail

__all__ = ["DOWNLOAD_AGAIN", "BoundedFile", "hash_files", "read_json", "read_small"]

DOWNLOAD_AGAIN = "the download was cut short or the file was changed: fetch it again"
# Bytes asked of the system at once: macOS refuses 2 GiB and more.
_MOST = 1 << 30


class BoundedFile:
    """A file open for reading, whose size was taken once.

    Raises:
        ExportError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _opened(path)
        self._open = True
        self.size = os.fstat(self._descriptor).st_size

    @property
    def name(self) -> str:
        """The file's name without its folder, as messages show it."""
        return self.path.name

    def fileno(self) -> int:
        """The descriptor, for a map."""
        return self._descriptor

    def read(self, offset: int, length: int, what: str) -> npt.NDArray[np.uint8]:
        """Read bytes.

        Args:
            offset: From the start of the file.
            length: In bytes.
            what: What is being read, for the message: "tensor `x`".

        Returns:
            uint8 `[length]`.

        Raises:
            ExportError: The file ends before, or the disk fails.
        """
        self._check(offset, length, what)  # before memory is taken for it
        data = np.empty(length, dtype=np.uint8)
        self.read_into(data, offset, what)
        return data

    def read_into(self, target: npt.NDArray[Any], offset: int, what: str) -> None:
        """Fill an array with bytes, without a copy between.

        Args:
            target: Contiguous; all of its bytes are replaced.
            offset: From the start of the file.
            what: What is being read, for the message.

        Raises:
            ExportError: The file ends before, or the disk fails.
        """
        self._check(offset, target.nbytes, what)
        self._fill(target.reshape(-1).view(np.uint8).data, offset, what)

    def read_columns(self, target: npt.NDArray[Any], offset: int, stride: int, what: str) -> None:
        """Fill the rows of a matrix from places that lie `stride` bytes apart.

        Args:
            target: Contiguous `[rows, columns]`; all of its bytes are replaced.
            offset: Of the first row, from the start of the file.
            stride: In bytes; not less than a row of `target` takes.
            what: What is being read, for the message.

        Raises:
            ExportError: The file ends before, or the disk fails.
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
                count = os.preadv(self._descriptor, [view[done : done + _MOST]], offset + done)
            except OSError as error:
                raise ExportError(f"{self.path} cannot be read at {what}: {error.strerror}") from error
            if not count:
                raise self.truncated(what)
            done += count

    def _check(self, offset: int, length: int, what: str) -> None:
        if not 0 <= offset <= offset + length <= self.size:
            raise self.truncated(what)

    def truncated(self, what: str) -> ExportError:
        """The error for a file that ends before something it announces."""
        return ExportError(
            f"{self.name} is truncated: its {self.size} bytes end before {what} does", hint=DOWNLOAD_AGAIN
        )

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self._open:
            self._open = False
            os.close(self._descriptor)


def _opened(path: Path) -> int:
    """Open a file for reading, and no pipe or device: those may never end, or never begin."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ExportError(f"{path} cannot be opened: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ExportError(f"{path} is no regular file")
    return descriptor


def read_small(path: Path, limit: int = 1 << 26) -> bytes:
    """Read a whole file that must not be larger than `limit` bytes.

    Raises:
        ExportError: It is larger, or cannot be read.
    """
    try:
        with open(_opened(path), "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise ExportError(f"{path} is larger than the {limit} bytes that such a file may have")
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


def hash_files(paths: Sequence[Path], progress: HashProgress | None = None) -> tuple[SourceFile, ...]:
    """Hash files in chunks, in order.

    Args:
        paths: The files.
        progress: Called with the bytes hashed so far and those there are.

    Raises:
        ExportError: One cannot be read.
    """
    found: list[SourceFile] = []
    done = 0
    try:
        total = sum(path.stat().st_size for path in paths)
        trail = Trail(total)
        for path in paths:
            start = done

            def hashed(count: int, path: Path = path, start: int = start) -> None:
                nonlocal done
                trail.passed(path, done - start, count)
                done += count
                if progress:
                    progress(done, total)

            found.append(SourceFile(path.name, *hash_file(path, hashed)))
        trail.end()
    except OSError as error:
        raise ExportError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    return tuple(found)
