"""The history of what was typed in earlier chats."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from edgekit.atomic_file import replace_file

__all__ = ["open_history"]

_MAX_BYTES = 1 << 20


def open_history(folder: Path | None) -> History:
    """Return the history in `folder`, or one in memory if no file can be written there.

    The file is its owner's alone, and loses its older half when it passes 1 MiB.
    """
    if folder is None:
        return InMemoryHistory()
    path = folder / "history"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if path.stat().st_size > _MAX_BYTES:
            _shorten(path)
    except OSError:
        return InMemoryHistory()
    return _History(str(path))


def _shorten(path: Path) -> None:
    text = path.read_bytes()
    # An entry is a comment with the time, then its lines, each with a `+` in front.
    begin = text.find(b"\n# ", len(text) // 2)
    if begin > 0:
        replace_file(path, text[begin:])


class _History(FileHistory):
    """A history whose file may become unwritable, as when the disk is full."""

    def store_string(self, string: str) -> None:
        """Append an entry; one that is not UTF-8 or cannot be written is kept in memory alone."""
        with contextlib.suppress(OSError, UnicodeError):
            super().store_string(string)
