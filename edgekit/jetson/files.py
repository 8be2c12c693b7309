"""Reads small files of the kernel, never blocking and never raising: what cannot be read is absent."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

__all__ = ["MAX_ENTRIES", "numbered", "read_bytes", "read_number", "read_text"]

MAX_BYTES = 4096
"""Read from a file at most: an attribute in sysfs is at most one page."""
MAX_ENTRIES = 256
"""Entries of a folder that are looked at."""


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes | None:
    """Return the beginning of a file; None if it is missing or cannot be read.

    Args:
        path: The file.
        limit: Maximum number of bytes.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        data = b""
        while len(data) < limit and (part := os.read(descriptor, limit - len(data))):
            data += part
    except OSError:
        return None
    else:
        return data
    finally:
        os.close(descriptor)


def read_text(path: Path, limit: int = MAX_BYTES) -> str | None:
    """Return the beginning of a text file without surrounding blanks and NULs; None if it cannot be read."""
    data = read_bytes(path, limit)
    return None if data is None else data.decode("utf-8", "replace").strip(" \t\r\n\0")


def read_number(path: Path) -> int | None:
    """Return the integer in a file; None if there is none, or an implausibly long one."""
    text = read_text(path)
    return int(text) if text is not None and re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None


def numbered(folder: Path, name: str) -> list[Path]:
    """Return the entries `NAME0`, `NAME1`, … of a folder in the order of their numbers.

    Args:
        folder: Such as /sys/class/hwmon.
        name: What the entries' names begin with, such as `hwmon`.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, MAX_ENTRIES)]
    except OSError:
        return []
    found = [(int(match[1]), item) for item in names if (match := re.fullmatch(rf"{name}([0-9]{{1,9}})", item))]
    return [folder / item for _, item in sorted(found)]
