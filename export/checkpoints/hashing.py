"""Hashes a checkpoint's files while it is exported.

Hashing runs slightly ahead of the tensor reader and at its pace: a file is then read from the disk once, and found in
the page cache the second time, however small that cache is.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from types import TracebackType

from edgekit.export.checkpoints.base import Checkpoint, SourceFile

__all__ = ["SourceHashes"]

# How far ahead of the reader, in bytes.
_LEAD = 1 << 27


class _StoppedError(Exception):
    """Ends the hashing thread once its result is not needed."""


class SourceHashes:
    """Hashes files in a thread beside the export. A context manager: leaving it stops the hashing.

    Args:
        checkpoint: The checkpoint whose files are hashed.
        read: Returns the fraction of the checkpoint read so far, from 0 to 1.
    """

    def __init__(self, checkpoint: Checkpoint, read: Callable[[], float]) -> None:
        self._read = read
        self._full_speed = Event()
        self._stopped = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._hashes: Future[tuple[SourceFile, ...]] = self._thread.submit(checkpoint.source, self._throttle)

    def __enter__(self) -> SourceHashes:  # noqa: PYI034  `Self` needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._full_speed.set()
        self._thread.shutdown()

    def result(self) -> tuple[SourceFile, ...]:
        """Hash the rest at full speed, and return all hashes.

        Raises:
            ExportError: A file cannot be read.
        """
        self._full_speed.set()
        return self._hashes.result()

    def _throttle(self, done: int, total: int) -> None:
        while done - _LEAD > self._read() * total and not self._full_speed.wait(0.02):
            pass
        if self._stopped:
            raise _StoppedError
