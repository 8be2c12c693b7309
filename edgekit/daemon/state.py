"""Folders and small files of the state folder that survive a power failure."""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.atomic_file import replace_file

__all__ = ["make_folder", "write_durably"]


def make_folder(path: Path) -> None:
    """Make a private folder, with those above it, so that a power failure after it leaves them.

    Raises:
        OSError: It cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in missing:
        _sync(folder.parent)


def write_durably(path: Path, text: str) -> None:
    """Replace a file so that a power failure after it leaves the new content.

    Raises:
        OSError: It cannot be written.
    """
    replace_file(path, text.encode("ascii"), mode=0o644)
    # The rename itself is durable once the folder is.
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
