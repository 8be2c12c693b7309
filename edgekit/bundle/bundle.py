"""A bundle on disk: open it, verify its files, update its manifest.

A bundle is a folder with `manifest.json`, the artifact, and Hugging Face's tokenizer and configuration files under
their usual names (`config.json`, `tokenizer.json`, `chat_template.jinja`, …).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from edgekit.atomic_file import replace_file
from edgekit.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from edgekit.bundle.quality import Quality
from edgekit.errors import BundleError

__all__ = [
    "Bundle",
    "Problem",
    "foreign_entries",
    "hash_file",
    "hash_folder",
    "open_bundle",
    "store_quality",
    "verify_bundle",
]

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle; its files are not yet verified."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Problem:
    """One defect of a bundle.

    Attributes:
        path: The file, relative to the bundle.
        what: `missing`, `size`, `hash`, `unlisted` or `not a file`.
        detail: One line for the user.
    """

    path: str
    what: str
    detail: str


def hash_file(path: Path, progress: Callable[[int], None] | None = None) -> tuple[int, str]:
    """Return a file's size in bytes and its SHA-256, reading it in chunks.

    Args:
        path: The file.
        progress: Called with the number of bytes of each chunk read.
    """
    digest = hashlib.sha256()
    size = 0
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
            if progress:
                progress(count)
    return size, digest.hexdigest()


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open the bundle in a folder.

    Raises:
        BundleError: `bundle_missing`: there is none; or its manifest is damaged.
        IncompatibleBundleError: The manifest's schema is newer than this edgekit reads.
    """
    path = Path(path)
    manifest = path / MANIFEST_NAME
    if not path.exists():
        raise BundleError(
            f"there is no bundle at {path}",
            hint=f"create one: edgekit export MODEL --target cpu -o {path}",
            code="bundle_missing",
        )
    try:
        text = manifest.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST_NAME}",
            hint="create one: edgekit export MODEL --target TARGET -o DIR",
            code="bundle_missing",  # so looks a mount point before the mount, too
        ) from None
    except OSError as error:
        raise BundleError(f"cannot read {manifest}: {error.strerror}") from error
    return Bundle(path=path, manifest=Manifest.from_json(text))


def store_quality(bundle: Bundle, quality: Quality) -> Bundle:
    """Store quality figures in a bundle's manifest, replacing the previous ones.

    The manifest is replaced atomically, with a new digest.

    Raises:
        BundleError: The manifest cannot be written.
    """
    manifest = replace(bundle.manifest, quality=quality.to_dict())
    path = bundle.path / MANIFEST_NAME
    try:
        replace_file(path, manifest.to_json().encode(), mode=stat.S_IMODE(path.stat().st_mode))
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror}") from error
    return Bundle(path=bundle.path, manifest=manifest)


def list_files(folder: Path) -> list[str]:
    """Return every file below `folder` except the manifest, as sorted relative paths with forward slashes."""
    found = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            relative = (Path(root) / name).relative_to(folder).as_posix()
            if relative != MANIFEST_NAME:
                found.append(relative)
    return sorted(found)


def foreign_entries(bundle: Bundle) -> list[str]:
    """Return what a bundle's folder holds besides the bundle: files, links and folders, as sorted relative paths."""
    listed = {entry.path for entry in bundle.manifest.files} | {MANIFEST_NAME}
    folders = {parent.as_posix() for path in listed for parent in PurePosixPath(path).parents}
    found = []
    for root, names, files in os.walk(bundle.path):
        relative = {name: (Path(root) / name).relative_to(bundle.path).as_posix() for name in (*names, *files)}
        found += [relative[name] for name in files if relative[name] not in listed]
        for name in list(names):
            # A link to a folder, or a folder that the manifest has no file in.
            if (Path(root) / name).is_symlink() or relative[name] not in folders:
                found.append(relative[name])
                names.remove(name)
    return sorted(found)


def hash_folder(folder: Path, known: Mapping[str, str] | None = None) -> tuple[FileEntry, ...]:
    """Hash every file of a bundle that is being written, in path order.

    Args:
        folder: The bundle's folder.
        known: SHA-256 by relative path of files that were hashed while they were written.
    """
    known = known or {}
    return tuple(
        FileEntry(relative, (folder / relative).stat().st_size, known[relative])
        if relative in known
        else FileEntry(relative, *hash_file(folder / relative))
        for relative in list_files(folder)
    )


def verify_bundle(bundle: Bundle, progress: Callable[[int], None] | None = None) -> list[Problem]:
    """Check every file of a bundle against its manifest.

    Args:
        bundle: The bundle.
        progress: Called with the number of bytes of each chunk hashed.

    Returns:
        All defects, in path order and unlisted files last; empty if the bundle is sound.
    """
    problems = []
    listed = {entry.path: entry for entry in bundle.manifest.files}
    for relative, entry in sorted(listed.items()):
        path = bundle.path / relative
        # A link could point out of the bundle, at a file that changes: only regular files are accepted.
        if path.is_symlink() or (path.exists() and not path.is_file()):
            problems.append(Problem(relative, "not a file", f"{relative} is not a regular file"))
            continue
        if not path.exists():
            problems.append(Problem(relative, "missing", f"{relative} is missing"))
            continue
        try:
            size, sha256 = hash_file(path, progress)
        except OSError as error:
            problems.append(Problem(relative, "missing", f"{relative} cannot be read: {error.strerror}"))
            continue
        if size != entry.size:
            problems.append(Problem(relative, "size", f"{relative} has {size} bytes instead of {entry.size}"))
        elif sha256 != entry.sha256:
            problems.append(Problem(relative, "hash", f"{relative} was changed: its SHA-256 is {sha256[:12]}…"))
    problems.extend(
        Problem(relative, "unlisted", f"{relative} is not part of the bundle")
        for relative in list_files(bundle.path)
        if relative not in listed
    )
    return problems
