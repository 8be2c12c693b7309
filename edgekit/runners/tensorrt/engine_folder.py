"""The folder of one engine in the store: what its files looked like when they were verified, and how it is removed.

Hashing gigabytes takes seconds, so it is done once; then inode, size and times say whether a file is still the same.
"""

from __future__ import annotations

import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

from edgekit.errors import RunnerError
from edgekit.runners.tensorrt.engine_set import ENGINE_JSON, SEGMENT_NAME, EngineSet, read_engine_set, verify_files

__all__ = ["RUNTIME_CACHE", "USER", "distrust", "is_sound", "mark_verified", "remove", "sync", "verify"]

logger = logging.getLogger(__name__)

RUNTIME_CACHE = "runtime-cache"
"""What the library compiled when an engine first ran (`runtime_cache`)."""
USER = re.compile(r"bundle-[0-9a-f]{16}")
"""The name of a file that names a bundle which uses the engine."""
_VERIFIED = "verified.json"
# A file while it is written (`atomic_file`).
_PARTIAL = re.compile(r"\.(?:engine\.json|verified\.json|runtime-cache)\..*\.partial")


def is_sound(folder: Path) -> bool:
    """Whether an engine has a description, and its files are what that says."""
    try:
        verify(folder, read_engine_set(folder))
    except (RunnerError, OSError):
        return False
    return True


def verify(folder: Path, engine: EngineSet) -> None:
    """Check that an engine's files are what its description says, unless they have not changed since that was done.

    Raises:
        RunnerError: A file is damaged.
        OSError: A file cannot be read.
    """
    if not _is_verified(folder, engine):
        verify_files(folder, engine)
        mark_verified(folder, engine)


def _stamps(folder: Path, engine: EngineSet) -> dict[str, list[int]]:
    """What changes if a segment is replaced or written: inode, size, and times of modification and status change."""
    found = {}
    for segment in engine.segments:
        status = (folder / segment.file).lstat()
        found[segment.file] = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return found


def _is_verified(folder: Path, engine: EngineSet) -> bool:
    try:
        stored = json.loads((folder / _VERIFIED).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    expected = {segment.file: segment.sha256 for segment in engine.segments}
    return bool(stored == {"files": _stamps(folder, engine), "sha256": expected})


def mark_verified(folder: Path, engine: EngineSet) -> None:
    """Note that the files were verified, so that they are hashed again only if they change."""
    hashes = {segment.file: segment.sha256 for segment in engine.segments}
    data = {"files": _stamps(folder, engine), "sha256": hashes}
    try:
        (folder / _VERIFIED).write_text(json.dumps(data), encoding="utf-8")
    except OSError:
        logger.info("%s cannot be written: the engine is verified at every start", folder / _VERIFIED)


def distrust(folder: Path) -> None:
    """Have an engine that does not load hashed again before its next use: a disk damages files without a write."""
    with suppress(OSError):
        (folder / _VERIFIED).unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove an engine's folder; files that are not the store's stay, and so does their folder."""
    if folder.is_symlink() or not folder.is_dir():
        return
    try:
        # Without its description nothing takes what is left for an engine.
        (folder / ENGINE_JSON).unlink(missing_ok=True)
        for path in folder.iterdir():
            if path.name in {_VERIFIED, RUNTIME_CACHE} or any(
                pattern.fullmatch(path.name) for pattern in (SEGMENT_NAME, USER, _PARTIAL)
            ):
                path.unlink(missing_ok=True)
        folder.rmdir()
    except OSError as error:
        logger.warning("%s cannot be removed: %s", folder, error.strerror or error)


def sync(folder: Path) -> None:
    """Store a folder's entries on disk."""
    handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
