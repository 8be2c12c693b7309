"""The folder of the prefix cache on disk: marked, and locked by the process that uses it.

The user's configuration names the folder, so it may hold a user's files: without the marker it is used only if it is
empty, and a link is never followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

__all__ = ["MARKER", "ForeignFolderError", "lock_folder"]

MARKER = "edgekit-prefix-cache"
"""A file in every folder of the cache; empty, so that it takes no page of the cache's limit."""


class ForeignFolderError(Exception):
    """The folder is not the cache's, and may contain a user's files."""


def lock_folder(folder: Path) -> int:
    """Create a folder, or recognise it as the cache's, and lock it.

    Returns:
        The descriptor that holds the lock, until it is closed.

    Raises:
        ForeignFolderError: It has other files and no marker, or it or its marker is a link.
        BlockingIOError: Another process holds the lock.
        OSError: It cannot be created or read.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink():
        raise ForeignFolderError("it is a link; let `prefix_folder` name the folder itself")
    marker = folder / MARKER
    if marker.is_symlink() or (marker.exists() and not marker.is_file()):
        raise ForeignFolderError(f"its `{MARKER}` is not a regular file")
    if not marker.exists() and any(folder.iterdir()):
        raise ForeignFolderError(f"it contains other files, and no `{MARKER}`; name another `prefix_folder`")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    lock = os.open(marker, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock
