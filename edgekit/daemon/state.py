"""Writes small files of the state folder so that they survive a power failure."""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.atomic_file import replace_file

__all__ = ["write_durably"]


def write_durably(path: Path, text: str) -> None:
    """Replace a file so that a power failure after it leaves the new content.

    Raises:
        OSError: It cannot be written.
    """
    replace_file(path, text.encode("ascii"), mode=0o644)
    # The rename itself is durable once the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
