"""A bundle on disk: open it, check every byte, write its manifest.

A bundle is a folder: `manifest.json`, the artifact, and the text side under the names Hugging Face uses
(`config.json`, `tokenizer.json`, `chat_template.jinja`, …). It knows no model and no network.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from edgekit.bundle.quality import Quality
from edgekit.errors import BundleError

__all__ = ["Bundle", "Problem", "hash_file", "hash_folder", "open_bundle", "store_quality", "verify_bundle"]

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle; its files are not yet verified."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a bundle.

    Attributes:
        path: The file, relative to the bundle.
        what: `missing`, `size`, `hash`, `unlisted` or `not a file`.
        detail: One line for a person.
    """

    path: str
    what: str
    detail: str


def hash_file(path: Path, progress: Callable[[int], None] | None = None) -> tuple[int, str]:
    """Return a file's size in bytes and its SHA-256, reading it in chunks.

    Args:
        path: The file.
        progress: Called with the bytes of each chunk read.
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


def open_bundle(path: Path) -> Bundle:
    """Open a bundle by its folder.

    Raises:
        BundleError: It is not a bundle, or its manifest is damaged.
        IncompatibleBundleError: It was written for a newer edgekit.
    """
    manifest = path / MANIFEST_NAME
    if not path.exists():
        raise BundleError(
            f"there is no bundle at {path}", hint=f"make one: edgekit export MODEL --target cpu -o {path}"
        )
    try:
        text = manifest.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST_NAME}",
            hint="make one with `edgekit export MODEL -o DIR`",
        ) from None
    except OSError as error:
        raise BundleError(f"cannot read {manifest}: {error.strerror}") from error
    return Bundle(path=path, manifest=Manifest.from_json(text))


def store_quality(bundle: Bundle, quality: Quality) -> Bundle:
    """Put quality figures into a bundle's manifest, in place of those that were there.

    The new manifest takes the old one's place in one step, with a digest of its own.

    Raises:
        BundleError: The manifest cannot be written.
    """
    manifest = replace(bundle.manifest, quality=quality.to_dict())
    path = bundle.path / MANIFEST_NAME
    beside = bundle.path / f".{MANIFEST_NAME}.partial"
    try:
        beside.write_text(manifest.to_json(), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise BundleError(f"cannot write {path}: {error.strerror}") from error
    return Bundle(path=bundle.path, manifest=manifest)


def list_files(folder: Path) -> list[str]:
    """Every file below `folder` but the manifest, as sorted relative paths with forward slashes."""
    found = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            relative = (Path(root) / name).relative_to(folder).as_posix()
            if relative != MANIFEST_NAME:
                found.append(relative)
    return sorted(found)


def hash_folder(folder: Path, known: Mapping[str, str] | None = None) -> tuple[FileEntry, ...]:
    """Hash every file of a bundle being written, in path order.

    Args:
        folder: The bundle's folder.
        known: SHA-256 of files that were hashed while they were written, by relative path.
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
        progress: Called with the bytes of each chunk hashed.

    Returns:
        Everything that is wrong, in path order; empty if the bundle is sound.
    """
    problems = []
    listed = {entry.path: entry for entry in bundle.manifest.files}
    for relative, entry in sorted(listed.items()):
        path = bundle.path / relative
        # A link could lead out of the bundle and change under it: only real files count.
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
