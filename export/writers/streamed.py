"""A file written from front to back: hashed as it is written, and moved on to the disk behind the writer.

It knows no format.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from edgekit.export.page_cache import TRAIL, forget

__all__ = ["StreamedFile"]

# Bytes handed to the disk at a time, once more than `TRAIL` was written: what is smaller stays in the page cache, for
# whoever reads it next.
_STEP = 1 << 28


class StreamedFile:
    """Opens a file for writing.

    Args:
        path: A file that is there already is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=1 << 20)
        self._digest = hashlib.sha256()
        self._size = 0
        self._forgotten = 0
        self._behind = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._moving: Future[None] | None = None

    def write(self, part: bytes | memoryview) -> None:
        """Append bytes."""
        self._file.write(part)
        self._digest.update(part)
        self._size += part.nbytes if isinstance(part, memoryview) else len(part)
        if self._size - self._forgotten >= TRAIL + _STEP and (self._moving is None or self._moving.done()):
            start, self._forgotten = self._forgotten, self._size - TRAIL
            self._moving = self._behind.submit(forget, self._path, start, self._forgotten - start, written=True)

    def tell(self) -> int:
        """How many bytes were written."""
        return self._size

    def flush(self) -> None:
        """Hand all bytes to the system."""
        self._file.flush()

    def close(self) -> str:
        """Close the file, if it is not closed already, and return its SHA-256."""
        self._file.close()
        self._behind.shutdown()
        return self._digest.hexdigest()
