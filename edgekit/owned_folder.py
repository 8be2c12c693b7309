"""A folder of files that edgekit makes and removes itself: marked, and locked by the process that uses it.

A user may have named the folder, so it may hold a user's files: without the marker it is used only if it is empty, and
a link is never followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

__all__ = ["ForeignFolderError", "lock_folder"]


class ForeignFolderError(Exception):
    """The folder is not edgekit's, and may contain a user's files."""


def lock_folder(folder: Path, marker_name: str, *, setting: str) -> int:
    """Create a folder, or recognise it as one of edgekit's, and lock it.

    Args:
        folder: The folder.
        marker_name: A file in every folder of this kind; empty, so that it takes no space.
        setting: What names the folder, for messages: `prefix_folder`.

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
        raise ForeignFolderError(f"it is a link; let `{setting}` name the folder itself")
    marker = folder / marker_name
    if marker.is_symlink() or (marker.exists() and not marker.is_file()):
        raise ForeignFolderError(f"its `{marker_name}` is not a regular file")
    if not marker.exists() and any(folder.iterdir()):
        raise ForeignFolderError(f"it contains other files, and no `{marker_name}`; name another `{setting}`")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    lock = os.open(marker, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock
