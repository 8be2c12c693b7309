"""The hashes of a checkpoint's files, taken while it is exported. It knows no tensor and no manifest.

Hashing runs a little ahead of whoever reads the tensors, at their pace: a file then comes from the disk once, and is
found in the page cache the second time, however small that is.
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
    """Nobody wants the hashes any more."""


class SourceHashes:
    """Hashes beside the export. Use it as a context manager: leaving it stops the hashing.

    Args:
        checkpoint: Whose files.
        read: Says how much of the checkpoint its reader has read, from 0 to 1.
    """

    def __init__(self, checkpoint: Checkpoint, read: Callable[[], float]) -> None:
        self._read = read
        self._hurry = Event()
        self._stopped = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._hashes: Future[tuple[SourceFile, ...]] = self._thread.submit(checkpoint.source, self._pace)

    def __enter__(self) -> SourceHashes:  # noqa: PYI034  `Self` needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._hurry.set()
        self._thread.shutdown()

    def result(self) -> tuple[SourceFile, ...]:
        """Hash the rest at full speed, and return all.

        Raises:
            ExportError: A file cannot be read.
        """
        self._hurry.set()
        return self._hashes.result()

    def _pace(self, done: int, total: int) -> None:
        while done - _LEAD > self._read() * total and not self._hurry.wait(0.02):
            pass
        if self._stopped:
            raise _StoppedError
