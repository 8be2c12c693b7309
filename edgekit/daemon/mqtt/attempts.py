"""Numbers the attempts to answer a request, so that a caller can tell the messages of two attempts apart.

The numbers grow over restarts, by two means that fail independently. The highest is stored, reserved in blocks so that
not every request writes to the disk; it holds where the clock is wrong, as on a device that boots in 1970. And each
start begins at the clock's milliseconds, which holds where the file is missing or stale: in a new container, after
files were restored, or after a start that could not write. A JSON reader may keep them in a 64-bit float.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from edgekit.daemon.state import write_durably

__all__ = ["Attempts"]

_log = logging.getLogger(__name__)

_BLOCK = 100


class Attempts:
    """A growing sequence of numbers.

    Args:
        path: File that holds the highest number reserved, in an existing folder; None stores nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._last = self._reserved = max(self._read(), time.time_ns() // 1_000_000)

    def next(self) -> int:
        """Return a number greater than all before it, those before a restart included."""
        if self._last >= self._reserved:
            self._reserve()
        self._last += 1
        return self._last

    def _read(self) -> int:
        if self._path is None:
            return 0
        try:
            return int(self._path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            _log.warning("mqtt: %s cannot be read: %s", self._path, error)
            return 0

    def _reserve(self) -> None:
        self._reserved = self._last + _BLOCK
        if self._path is None:
            return
        try:
            write_durably(self._path, f"{self._reserved}\n")
        except OSError as error:
            _log.warning("mqtt: %s cannot be written: %s", self._path, error)
