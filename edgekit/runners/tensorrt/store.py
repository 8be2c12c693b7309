"""The store of engines: what was built on this device, found again at the next start.

    FOLDER/                        0700
        edgekit-engines            marks the folder as the store's; locked while an engine is added
        0123…cdef/                 one engine: `engine.json` and its segments (`engine_set`)
            verified.json          what its files looked like when they were verified
            runtime-cache          what the library compiled when it first ran
            bundle-0123456789abcdef  a bundle that uses it: the file holds its path
        building/                  the engine that is being added; left by a killed process, it is removed by the next

An engine is used only if it is what is wanted in every respect (`Wanted`) and its files have their size and SHA-256.
Anything else is built again. An engine that no bundle uses any more is removed. Only files and folders with these names
are removed, and links are never followed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

from edgekit.bundle.bundle import Bundle
from edgekit.errors import RunnerError
from edgekit.machine import cache_folder
from edgekit.memory import GIB
from edgekit.owned_folder import ForeignFolderError, lock_folder
from edgekit.runners.tensorrt.engine_folder import USER, is_sound, mark_verified, remove, sync, verify
from edgekit.runners.tensorrt.engine_set import EngineSet, Profile, read_engine_set
from edgekit.runners.tensorrt.troubles import write_failed

__all__ = ["EngineStore", "StoredEngine", "Wanted", "graph_digest"]

logger = logging.getLogger(__name__)

_MARKER = "edgekit-engines"
_BUILDING = "building"
_TIMINGS = "timings"
_ENGINE = re.compile(r"[0-9a-f]{32}")
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Wanted:
    """The engine that a bundle needs; the attributes are those of `EngineSet`.

    Attributes:
        context_length: None takes any.
        profiles: None takes any.
        segments: Number of segments; None takes any.
    """

    graph_sha256: str
    dialect: str
    layout: int
    library: str
    version: str
    compute_capability: str
    context_length: int | None
    workspace_bytes: int
    profiles: tuple[Profile, ...] | None
    segments: int | None = None

    def exactly(self, engine: EngineSet) -> Wanted:
        """Return the same with an engine's context length, profiles and number of segments."""
        return replace(
            self,
            context_length=engine.context_length,
            profiles=engine.profiles,
            segments=len(engine.segments),
        )

    def difference(self, engine: EngineSet) -> str | None:
        """Return in what an engine is not the one wanted, for the user; None if it is."""
        for field, label in _LABELS.items():
            have, want = getattr(engine, field), getattr(self, field)
            if want is not None and have != want:
                return f"its {label} is {_shown(have)}, not {_shown(want)}"
        if self.segments is not None and len(engine.segments) != self.segments:
            return f"it has {len(engine.segments)} segments, not {self.segments}"
        return None


_LABELS = {
    "graph_sha256": "graph",
    "dialect": "dialect",
    "layout": "layout",
    "library": "library",
    "version": "library's version",
    "compute_capability": "compute capability",
    "context_length": "context length",
    "workspace_bytes": "workspace",
    "profiles": "shapes",
}


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """An engine in the store, or in a folder of the user's."""

    folder: Path
    engine: EngineSet


class EngineStore:
    """A folder of engines; several processes may use it.

    Args:
        folder: Created if missing; default: `engines` in edgekit's cache folder.

    Raises:
        ConfigError: There is no cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "engines"

    @property
    def timings(self) -> Path:
        """The file of the builder's timings."""
        return self.folder / _TIMINGS

    def find(self, wanted: Wanted) -> StoredEngine | None:
        """Return an engine that is wanted and sound; None if there is none."""
        return next(self._sound(lambda engine: wanted.difference(engine) is None), None)

    def described(self, graph_sha256: str) -> list[EngineSet]:
        """Return the engines of a graph (`graph_digest`) by their descriptions; their files may be damaged."""
        found = []
        for folder in self._engines():
            with suppress(RunnerError):
                found.append(read_engine_set(folder))
        return [engine for engine in found if engine.graph_sha256 == graph_sha256]

    def of_graph(self, graph_sha256: str, *, library: str, version: str) -> list[StoredEngine]:
        """Return the sound engines of a graph for a library, for whatever GPU and shapes."""
        wanted = (graph_sha256, library, version)
        return list(self._sound(lambda engine: (engine.graph_sha256, engine.library, engine.version) == wanted))

    def _sound(self, fits: Callable[[EngineSet], bool]) -> Iterator[StoredEngine]:
        """Yield engines that fit and whose files are verified."""
        for folder in self._engines():
            try:
                engine = read_engine_set(folder)
                if not fits(engine):
                    continue
                verify(folder, engine)
            except (RunnerError, OSError) as error:
                logger.warning("an engine is not used: %s", error)
                continue
            yield StoredEngine(folder, engine)

    def obtain(
        self,
        bundle: Path,
        wanted: Wanted,
        make: Callable[[Path], object],
        *,
        needed_bytes: int = 0,
        waiting: Callable[[], None] | None = None,
    ) -> StoredEngine:
        """Return the engine that a bundle needs, making it if there is none.

        Args:
            bundle: The bundle's folder.
            wanted: The engine.
            make: Writes an engine into an empty folder. What it raises, this raises.
            needed_bytes: Space that the engine takes at least.
            waiting: Called several times a second while another process adds an engine; it may raise.

        Raises:
            RunnerError: The folder cannot be used, the disk is full, or what was made is not what is wanted.
        """
        if self.folder.resolve().is_relative_to(bundle.resolve()):
            raise RunnerError(
                f"{self.folder} is inside the bundle, which would no longer be what its manifest says",
                hint="set EDGEKIT_CACHE to a folder outside of it",
            )
        if (found := self.find(wanted)) is not None and self._is_user(found.folder, bundle):
            return found
        with self._locked(waiting):
            # Another process may have built it meanwhile.
            if (found := self.find(wanted)) is None:
                found = self._add(bundle, wanted, make, needed_bytes)
            else:
                _add_user(found.folder, bundle)
            self._remove_unused(bundle, found.folder)
        return found

    def remove(self, stored: StoredEngine) -> None:
        """Remove an engine that must not be used, such as one that computes something else.

        Raises:
            RunnerError: The folder cannot be used.
        """
        with self._locked(None):
            remove(stored.folder)

    def _add(self, bundle: Path, wanted: Wanted, make: Callable[[Path], object], needed_bytes: int) -> StoredEngine:
        building = self.folder / _BUILDING
        if os.path.lexists(building):
            # What a killed build left was removed.
            raise RunnerError(
                f"{building} is in the way of the build: edgekit did not make it, or it has other files",
                hint="move it elsewhere, or set EDGEKIT_CACHE to another folder",
            )
        self._make_room(bundle, needed_bytes)
        try:
            building.mkdir(mode=0o700)
            make(building)
            engine = read_engine_set(building)
            difference = wanted.difference(engine)
            if difference is not None:
                raise RunnerError(f"the engine is not the one that the bundle needs: {difference}")
            _add_user(building, bundle)
            mark_verified(building, engine)
            sync(building)
            folder = self._free_folder(engine)
            building.rename(folder)
            sync(self.folder)
        except OSError as error:
            raise write_failed(f"the engine cannot be stored in {self.folder}", error) from error
        finally:
            remove(building)
        return StoredEngine(folder, engine)

    def _free_folder(self, engine: EngineSet) -> Path:
        """The folder for an engine that was not found: one of its name is damaged, or has files of a user's."""
        for attempt in count():
            folder = self.folder / _name(engine, attempt)
            remove(folder)
            if not os.path.lexists(folder):
                break
        return folder

    def _make_room(self, bundle: Path, needed_bytes: int) -> None:
        """Remove engines that this bundle used, if the new one does not fit beside them."""
        if shutil.disk_usage(self.folder).free < needed_bytes:
            self._remove_unused(bundle, None)
        free = shutil.disk_usage(self.folder).free
        if free < needed_bytes:
            raise RunnerError(
                f"the engine takes at least {needed_bytes / GIB:.2f} GiB; {self.folder} has {free / GIB:.2f} GiB",
                hint="free some space, or set EDGEKIT_CACHE to a folder on another disk",
            )

    def _engines(self) -> list[Path]:
        """The engines' folders; none if this is not a store."""
        marker = self.folder / _MARKER
        if self.folder.is_symlink() or marker.is_symlink() or not marker.is_file():
            return []
        return sorted(
            path
            for path in self.folder.iterdir()
            if _ENGINE.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        )

    @contextmanager
    def _locked(self, waiting: Callable[[], None] | None) -> Iterator[None]:
        """Hold the store's lock: one engine is built at a time, as each build takes memory."""
        try:
            while True:
                try:
                    lock = lock_folder(self.folder, _MARKER, setting="EDGEKIT_CACHE")
                    break
                except BlockingIOError:
                    if waiting is not None:
                        waiting()
                    time.sleep(_POLL_S)
        except ForeignFolderError as error:
            raise RunnerError(f"{self.folder} cannot hold engines: {error}") from error
        except OSError as error:
            raise RunnerError(
                f"{self.folder} cannot be used: {error.strerror or error}",
                hint="set EDGEKIT_CACHE to a folder that can be written to",
            ) from error
        try:
            remove(self.folder / _BUILDING)
            yield
        finally:
            os.close(lock)

    def _remove_unused(self, bundle: Path, current: Path | None) -> None:
        """Remove the engines that only this bundle used before, those of bundles that are gone, and damaged ones."""
        own = _user_file(bundle)
        for folder in self._engines():
            if folder == current:
                continue
            users = [path for path in folder.iterdir() if USER.fullmatch(path.name)]
            kept = [path for path in users if path.name != own and _is_there(path)]
            # Without a description it is what a killed process had not finished removing.
            if kept and is_sound(folder):
                with suppress(OSError):
                    (folder / own).unlink(missing_ok=True)
            else:
                logger.info("removing an engine that no bundle uses, or that is damaged: %s", folder)
                remove(folder)

    @staticmethod
    def _is_user(folder: Path, bundle: Path) -> bool:
        return (folder / _user_file(bundle)).is_file()


def graph_digest(bundle: Bundle) -> str:
    """Return the SHA-256 of a bundle's graph and weights, by its manifest."""
    files = sorted((entry.path, entry.sha256) for entry in bundle.manifest.files if _is_graph(entry.path))
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _is_graph(path: str) -> bool:
    return path.endswith((".onnx", ".onnx.data"))


def _name(engine: EngineSet, attempt: int = 0) -> str:
    """The folder of an engine: what it was built from and for, not what came of it."""
    key = asdict(engine) | {"segments": len(engine.segments)} | ({"attempt": attempt} if attempt else {})
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _user_file(bundle: Path) -> str:
    return f"bundle-{hashlib.sha256(os.fsencode(bundle.resolve())).hexdigest()[:16]}"


def _add_user(folder: Path, bundle: Path) -> None:
    """Note that a bundle uses an engine; without the note the engine is built again after the next one."""
    with suppress(OSError):
        (folder / _user_file(bundle)).write_bytes(os.fsencode(bundle.resolve()))


def _is_there(user: Path) -> bool:
    """Whether the bundle that a file names still exists; if in doubt it does."""
    try:
        return user.is_symlink() or Path(os.fsdecode(user.read_bytes())).exists()
    except (OSError, ValueError):
        return True


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(f"{one.batch} × {one.tokens}" for one in value)
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else f"`{text}`"
