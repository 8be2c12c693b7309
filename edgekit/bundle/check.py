"""Checks a bundle before it is loaded: that this machine is one of its targets, and every byte of its files.

Hashing a large bundle takes as long as reading it. So it is done once per change: a stamp in the state folder holds
each file's inode, size, times and SHA-256 as they were when it was verified. A file that the disk damages without a
write keeps its stamp; `edgekit verify` reads every byte each time.
"""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from edgekit.atomic_file import replace_file
from edgekit.bundle.bundle import Bundle, foreign_entries, hash_file
from edgekit.errors import BundleError, IncompatibleBundleError, option
from edgekit.machine import Machine, probe, state_folder
from edgekit.profile import FALLBACK
from edgekit.recognition import recognise

__all__ = ["HashProgress", "check_bundle", "check_compatible", "check_files"]

logger = logging.getLogger(__name__)

HashProgress = Callable[[int, int], None]
"""Called with the bytes hashed so far, and in total."""

_STAMPS = "verified-bundles.json"
_MAX_BUNDLES = 32
# Files that a loader may open without the manifest naming them.
_LOADED = {".onnx", ".data", ".safetensors", ".json", ".jinja"}

_Stamp = list[int | str]


def check_bundle(bundle: Bundle, *, ignore_compatible: bool = False, progress: HashProgress | None = None) -> None:
    """Check that this machine is one of a bundle's targets, and that its files are those of its manifest.

    Args:
        bundle: The bundle.
        ignore_compatible: Accept a bundle for other targets.
        progress: Called while files are hashed; not at all if the bundle is unchanged since it was verified.

    Raises:
        IncompatibleBundleError: It was made for other targets.
        BundleError: A file is missing, damaged or not of the bundle; the message names it.
    """
    if not ignore_compatible:
        check_compatible(bundle)
    state = state_folder()
    check_files(bundle, None if state is None else state / _STAMPS, progress)


def check_compatible(bundle: Bundle, machine: Machine | None = None) -> None:
    """Check that a machine is one of a bundle's targets.

    Args:
        bundle: The bundle; one that names no target runs anywhere.
        machine: The machine; None means this one, probed only if the bundle is not for every machine.

    Raises:
        IncompatibleBundleError: It is not.
    """
    compatible = bundle.manifest.compatible
    if not compatible or FALLBACK in compatible:
        return
    target = recognise(probe() if machine is None else machine)
    if not set(compatible) & set(target.accepts):
        raise IncompatibleBundleError(
            f"{bundle.path} was made for {', '.join(compatible)}; this machine is `{target.name}` ({target.title}), "
            f"which runs {' and '.join(target.accepts)}",
            hint=f"create one for it: edgekit export MODEL --target {target.name}; to try this one nevertheless: "
            f"{option('ignore_compatible', value=True)}, or "
            "`ignore_compatible: true` under `generation:` in edgekit.yaml",
        )


def check_files(bundle: Bundle, stamps: Path | None, progress: HashProgress | None = None) -> None:
    """Check every file of a bundle against its manifest, hashing those that have no valid stamp.

    Args:
        bundle: The bundle.
        stamps: The file of stamps, read and written if possible; None if there is no folder for it.
        progress: See `check_bundle`.

    Raises:
        BundleError: A file is missing, damaged or not of the bundle; the message names it.
    """
    before = {entry.path: _fingerprint(bundle, entry.path, entry.size) for entry in bundle.manifest.files}
    _check_foreign(bundle)
    key = str(bundle.path.resolve())
    stored = _read(stamps).get(key, {})
    changed = [e for e in bundle.manifest.files if stored.get(e.path) != [*before[e.path], e.sha256]]
    if not changed:
        return
    total, done = sum(entry.size for entry in changed), 0
    logger.info("verifying %s: %d files, %.1f MB", bundle.path, len(changed), total / 1e6)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for entry in changed:
        try:
            size, sha256 = hash_file(bundle.path / entry.path, advance)
        except OSError as error:
            raise _damaged(bundle, f"{entry.path} cannot be read: {error.strerror or error}") from error
        if (size, sha256) != (entry.size, entry.sha256):
            raise _damaged(bundle, f"{entry.path} was changed: its SHA-256 is {sha256[:12]}…")
        if _fingerprint(bundle, entry.path, entry.size) != before[entry.path]:
            raise _damaged(bundle, f"{entry.path} is being written")
    if stamps is not None:
        _write(stamps, key, {entry.path: [*before[entry.path], entry.sha256] for entry in bundle.manifest.files})


def _fingerprint(bundle: Bundle, path: str, size: int) -> _Stamp:
    """What changes if a file is replaced or written: inode, size, and times of modification and of status change."""
    try:
        status = (bundle.path / path).lstat()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise _damaged(bundle, f"{path} is missing" if missing else f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise _damaged(bundle, f"{path} is not a regular file")
    if status.st_size != size:
        raise _damaged(bundle, f"{path} has {status.st_size} bytes instead of {size}")
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _check_foreign(bundle: Bundle) -> None:
    """Refuse files that a loader could open although the manifest does not name them; others are only logged."""
    foreign = [path for path in foreign_entries(bundle) if not PurePosixPath(path).name.startswith(".")]
    for path in foreign:
        if PurePosixPath(path).suffix in _LOADED:
            raise _damaged(bundle, f"{path} is not part of the bundle", hint="move it out of the bundle's folder")
    if foreign:
        logger.warning("%s is not part of the bundle in %s", ", ".join(foreign[:5]), bundle.path)


def _damaged(bundle: Bundle, detail: str, *, hint: str | None = None) -> BundleError:
    return BundleError(
        f"{bundle.path} is damaged: {detail}",
        hint=hint or f"copy or export it again; `edgekit verify {bundle.path}` lists every damaged file",
    )


def _read(stamps: Path | None) -> dict[str, dict[str, _Stamp]]:
    """The stamps of each bundle's files; empty if there are none, or they cannot be read."""
    if stamps is None:
        return {}
    try:
        data = json.loads(stamps.read_bytes())
        return {
            str(folder): {str(path): list(stamp) for path, stamp in files.items()} for folder, files in data.items()
        }
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return {}


def _write(stamps: Path, key: str, files: Mapping[str, _Stamp]) -> None:
    """Store a bundle's stamps as the last; the first are dropped."""
    data = {folder: kept for folder, kept in _read(stamps).items() if folder != key}
    data = {**dict(list(data.items())[1 - _MAX_BUNDLES :]), key: dict(files)}
    try:
        stamps.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(stamps, json.dumps(data).encode())
    except OSError as error:
        logger.info("%s cannot be written (%s): the bundle is verified at every start", stamps, error.strerror)
