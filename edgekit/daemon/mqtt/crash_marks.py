"""Recognizes a request that ends the daemon while it is prepared.

The broker delivers it again at every start, until it is acknowledged. So a request is marked in the state folder before
it is prepared, and the mark is removed afterwards: a mark that is found tells of a start that did not survive it.
"""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

__all__ = ["MAX_CRASHES", "CrashMarks"]

_log = logging.getLogger(__name__)

MAX_CRASHES = 2
"""Starts that a request may end before it is refused."""

_NAME = re.compile(r"[0-9a-f]{64}")
_KEPT_S = 86_400.0
_MAX_MARKS = 1000


class CrashMarks:
    """One small file per request in preparation, with the number of times that it was begun.

    They are not synced to the disk: only a crash of the process is of interest, not one of the machine.

    Args:
        folder: Where they are, made if it is missing; None keeps none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._clean_up(folder)
        except OSError as error:
            _log.warning("mqtt: %s cannot be used: %s", folder, error)

    def begin(self, name: str) -> bool:
        """Mark a request, and return whether to prepare it; False if it has ended `MAX_CRASHES` starts.

        Args:
            name: The request's name: a SHA-256, in hexadecimal digits.
        """
        if self._folder is None:
            return True
        path = self._folder / name
        count = _read(path)
        if count >= MAX_CRASHES:
            return False
        try:
            path.write_text(f"{count + 1}\n", encoding="ascii")
        except OSError as error:
            _log.warning("mqtt: %s cannot be written: %s", path, error)
        return True

    def end(self, name: str) -> None:
        """Remove the mark of a request that was prepared, or refused in proper form."""
        if self._folder is not None:
            try:
                (self._folder / name).unlink(missing_ok=True)
            except OSError as error:
                _log.warning("mqtt: %s cannot be removed: %s", self._folder / name, error)

    @staticmethod
    def _clean_up(folder: Path) -> None:
        # Only what has a mark's name is removed.
        marks = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_file()]
        oldest_first = sorted(marks, key=lambda path: path.stat().st_mtime)
        for number, path in enumerate(reversed(oldest_first)):
            if number >= _MAX_MARKS or time.time() - path.stat().st_mtime > _KEPT_S:
                path.unlink(missing_ok=True)


def _read(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0
    except (OSError, ValueError):
        # Written when the process ended: it counts as begun once.
        return 1
