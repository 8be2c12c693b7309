"""The store of engines, with small files in the place of engines."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import RunnerError
from edgekit.runners.tensorrt.engine_folder import distrust, mark_verified
from edgekit.runners.tensorrt.engine_set import ENGINE_JSON, EngineSet, Profile, write_engine_set
from edgekit.runners.tensorrt.store import EngineStore, Wanted
from tests.runners.tensorrt.test_engine_set import engine_in

WANTED = Wanted(
    graph_sha256="0" * 64,
    dialect="portable",
    layout=3,
    library="tensorrt",
    version="10.3.0",
    compute_capability="8.7",
    context_length=4096,
    workspace_bytes=1 << 30,
    profiles=(Profile(1, 1), Profile(1, 128)),
)


class Maker:
    """Makes the engine that is wanted, and counts."""

    def __init__(self, wanted: Wanted = WANTED) -> None:
        self.wanted = wanted
        self.made = 0

    def __call__(self, folder: Path) -> None:
        self.made += 1
        engine = engine_in(folder)
        wanted = {field.name: getattr(self.wanted, field.name) for field in fields(Wanted) if field.name != "segments"}
        write_engine_set(folder, replace(engine, **wanted))


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "cache" / "engines")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    return tmp_path / "bundle"


def engines(store: EngineStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if path.is_dir())


def obtain(store: EngineStore, bundle: Path, wanted: Wanted = WANTED) -> tuple[EngineSet, int]:
    """An engine from the store, and how often it was made."""
    maker = Maker(wanted)
    return store.obtain(bundle, wanted, maker).engine, maker.made


def test_an_engine_is_made_once_and_found_again(store: EngineStore, bundle: Path) -> None:
    assert store.find(WANTED) is None
    engine, made = obtain(store, bundle)
    assert made == 1
    assert obtain(store, bundle) == (engine, 0)
    found = EngineStore(store.folder).find(WANTED)
    assert found is not None
    assert (found.engine, found.folder.parent) == (engine, store.folder)
    assert store.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "change",
    [
        {"graph_sha256": "1" * 64},
        {"dialect": "native"},
        {"layout": 2},
        {"library": "tensorrt_rtx"},
        {"version": "10.16.2"},
        {"compute_capability": "8.6"},
        {"context_length": 2048},
        {"workspace_bytes": 0},
        {"profiles": (Profile(1, 1), Profile(1, 256))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_engine_that_differs_in_anything_is_made_again_and_the_old_one_removed(
    store: EngineStore, bundle: Path, change: dict[str, Any]
) -> None:
    obtain(store, bundle)
    old = engines(store)
    other = replace(WANTED, **change)
    assert store.find(other) is None
    assert obtain(store, bundle, other)[1] == 1
    assert len(engines(store)) == 1
    assert engines(store) != old
    assert store.find(WANTED) is None


def test_an_engine_of_another_number_of_segments_is_used_unless_a_number_is_wanted(
    store: EngineStore, bundle: Path
) -> None:
    obtain(store, bundle)
    assert store.find(replace(WANTED, segments=2)) is not None
    assert store.find(replace(WANTED, segments=3)) is None
    with pytest.raises(RunnerError, match="it has 2 segments, not 3"):
        obtain(store, bundle, replace(WANTED, segments=3))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_link(path: Path) -> None:
    copy = path.parent.parent.parent / "copy"
    path.rename(copy)
    path.symlink_to(copy)


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        *((damage, file) for damage in (cut, flip, Path.unlink) for file in ("segment-01.engine", "engine.json")),
        (replace_by_link, "segment-00.engine"),
    ],
)
def test_a_damaged_engine_is_never_used_but_made_again(
    store: EngineStore, bundle: Path, damage: Callable[[Path], None], file: str
) -> None:
    engine, _ = obtain(store, bundle)
    damage(store.folder / engines(store)[0] / file)
    assert store.find(WANTED) is None
    assert obtain(store, bundle) == (engine, 1)
    assert obtain(store, bundle) == (engine, 0)
    assert len(engines(store)) == 1


def test_an_unchanged_engine_is_hashed_once(store: EngineStore, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.setattr("edgekit.runners.tensorrt.engine_folder.verify_files", lambda folder, _: hashed.append(folder))
    obtain(store, bundle)
    assert store.find(WANTED) is not None
    assert hashed == []
    path = store.folder / engines(store)[0] / "segment-00.engine"
    os.utime(path, ns=(1, 1))
    assert store.find(WANTED) is not None
    assert store.find(WANTED) is not None
    assert len(hashed) == 1


def test_an_engine_stays_while_another_bundle_uses_it(store: EngineStore, bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    obtain(store, bundle)
    assert obtain(store, other)[1] == 0
    newer = replace(WANTED, graph_sha256="1" * 64)
    obtain(store, bundle, newer)
    assert len(engines(store)) == 2
    assert store.find(WANTED) is not None
    obtain(store, other, newer)
    assert len(engines(store)) == 1


def test_one_without_a_sound_description_does_not_stay_for_another_bundle(
    store: EngineStore, bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    obtain(store, other)
    (name,) = engines(store)
    (store.folder / name / ENGINE_JSON).write_bytes(b"damaged")
    obtain(store, bundle, replace(WANTED, graph_sha256="1" * 64))
    assert len(engines(store)) == 1
    assert name not in engines(store)


def test_one_with_a_damaged_segment_does_not_stay_for_another_bundle_which_has_it_made_again(
    store: EngineStore, bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    engine, _ = obtain(store, bundle)
    obtain(store, other)
    (name,) = engines(store)
    flip(store.folder / name / "segment-01.engine")
    obtain(store, bundle, replace(WANTED, graph_sha256="1" * 64))
    assert name not in engines(store)
    assert obtain(store, other) == (engine, 1)
    assert len(engines(store)) == 2


def test_a_sound_engine_of_another_bundle_stays_on_a_full_disk(
    store: EngineStore, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not even the note can be written that it was verified."""
    other = tmp_path / "other"
    other.mkdir()
    made = store.obtain(other, WANTED, Maker())
    obtain(store, bundle, replace(WANTED, graph_sha256="1" * 64))
    distrust(made.folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    assert store.find(WANTED) is not None
    obtain(store, bundle, replace(WANTED, graph_sha256="2" * 64))
    assert made.folder.exists()
    assert store.find(WANTED) is not None


def test_one_that_does_not_load_is_hashed_again(store: EngineStore, bundle: Path) -> None:
    """A disk that damages a file without a write leaves its times as they were."""
    made = store.obtain(bundle, WANTED, Maker())
    flip(made.folder / "segment-01.engine")
    mark_verified(made.folder, made.engine)
    assert store.find(WANTED) is not None
    distrust(made.folder)
    assert store.find(WANTED) is None


def test_an_engine_whose_bundle_is_gone_is_removed_at_the_next_build(
    store: EngineStore, bundle: Path, tmp_path: Path
) -> None:
    obtain(store, bundle)
    bundle.rmdir()
    other = tmp_path / "other"
    other.mkdir()
    obtain(store, other, replace(WANTED, graph_sha256="1" * 64))
    assert len(engines(store)) == 1


def test_what_a_killed_process_had_not_finished_removing_is_removed(
    store: EngineStore, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    left = store.obtain(tmp_path / "other", WANTED, Maker()).folder
    (left / "engine.json").unlink()
    obtain(store, bundle, replace(WANTED, version="10.16.2"))
    assert not left.exists()
    assert len(engines(store)) == 1


class MadeError(Exception):
    """What a maker raised."""


@pytest.mark.parametrize("error", [MadeError(), KeyboardInterrupt(), SystemExit(143)])
def test_a_failed_build_leaves_nothing_and_the_old_engine_usable(
    store: EngineStore, bundle: Path, error: BaseException
) -> None:
    obtain(store, bundle)
    before = engines(store)

    def fail(folder: Path) -> None:
        (folder / "segment-00.engine").write_bytes(bytes(1000))
        raise error

    with pytest.raises(type(error)):
        store.obtain(bundle, replace(WANTED, version="10.16.2"), fail)
    assert engines(store) == before
    assert obtain(store, bundle)[1] == 0
    assert obtain(store, bundle, replace(WANTED, version="10.16.2"))[1] == 1


def test_what_a_killed_build_left_is_removed_by_the_next(store: EngineStore, bundle: Path) -> None:
    obtain(store, bundle)
    left = store.folder / "building"
    left.mkdir()
    for name in ("segment-00.engine", ".engine.json.abc.partial", "engine.json"):
        (left / name).write_bytes(b"half")
    obtain(store, bundle, replace(WANTED, version="10.16.2"))
    assert not left.exists()
    assert len(engines(store)) == 1


def test_a_full_disk_is_an_error_that_says_so(store: EngineStore, bundle: Path) -> None:
    obtain(store, bundle)
    before = engines(store)

    def fill(folder: Path) -> None:
        (folder / "segment-00.engine").write_bytes(bytes(1000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunnerError, match="No space left on device"):
        store.obtain(bundle, replace(WANTED, version="10.16.2"), fill)
    assert engines(store) == before


def test_an_engine_larger_than_the_free_space_is_refused_with_figures_before_it_is_built(
    store: EngineStore, bundle: Path
) -> None:
    maker = Maker()
    with pytest.raises(RunnerError, match=r"at least 1048576\.00 GiB"):
        store.obtain(bundle, WANTED, maker, needed_bytes=1 << 50)
    assert maker.made == 0


def test_two_that_want_an_engine_at_once_build_it_once(store: EngineStore, bundle: Path) -> None:
    building, waiting, maker = threading.Event(), threading.Event(), Maker()

    def slow(folder: Path) -> None:
        building.set()
        assert waiting.wait(60), "the other one does not wait for this build"
        maker(folder)

    first = threading.Thread(target=store.obtain, args=(bundle, WANTED, slow))
    first.start()
    try:
        assert building.wait(60)
        # A lock of files excludes another process as it does another descriptor of this one.
        found = EngineStore(store.folder).obtain(bundle, WANTED, maker, waiting=waiting.set)
    finally:
        waiting.set()
        first.join(60)
    assert maker.made == 1
    assert found.folder.name in engines(store)


def test_waiting_for_another_build_can_be_cancelled(store: EngineStore, bundle: Path) -> None:
    building, cancelled = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        building.set()
        cancelled.wait(60)
        Maker()(folder)

    def cancel() -> None:
        raise MadeError

    first = threading.Thread(target=store.obtain, args=(bundle, WANTED, slow))
    first.start()
    try:
        assert building.wait(60)
        with pytest.raises(MadeError):
            store.obtain(bundle, WANTED, Maker(), waiting=cancel)
    finally:
        cancelled.set()
        first.join(60)
    assert len(engines(store)) == 1


def test_a_folder_with_other_files_is_not_used_and_nothing_in_it_removed(store: EngineStore, bundle: Path) -> None:
    store.folder.mkdir(parents=True)
    (store.folder / "building").mkdir()
    (store.folder / "building" / "segment-00.engine").write_bytes(b"mine")
    with pytest.raises(RunnerError, match="contains other files"):
        obtain(store, bundle)
    assert (store.folder / "building" / "segment-00.engine").read_bytes() == b"mine"


def test_a_link_is_not_used_as_the_folder_nor_followed_in_it(store: EngineStore, bundle: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "segment-00.engine").write_bytes(b"mine")
    store.folder.parent.mkdir()
    store.folder.symlink_to(elsewhere)
    with pytest.raises(RunnerError, match="it is a link"):
        obtain(store, bundle)
    store.folder.unlink()
    obtain(store, bundle)
    (store.folder / ("a" * 32)).symlink_to(elsewhere)
    (store.folder / "building").symlink_to(elsewhere)
    with pytest.raises(RunnerError, match="building is in the way"):
        obtain(store, bundle, replace(WANTED, version="10.16.2"))
    (store.folder / "building").unlink()
    obtain(store, bundle, replace(WANTED, version="10.16.2"))
    assert (elsewhere / "segment-00.engine").read_bytes() == b"mine"
    assert (store.folder / ("a" * 32)).is_symlink()


def test_a_users_file_in_an_engines_folder_stays(store: EngineStore, bundle: Path) -> None:
    obtain(store, bundle)
    folder = store.folder / engines(store)[0]
    (folder / "notes.txt").write_text("mine")
    obtain(store, bundle, replace(WANTED, version="10.16.2"))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert store.find(WANTED) is None


def test_an_engine_that_is_not_what_was_asked_for_is_not_stored(store: EngineStore, bundle: Path) -> None:
    with pytest.raises(RunnerError, match=r"not the one that the bundle needs: its library's version is `10\.3\.0`"):
        store.obtain(bundle, replace(WANTED, version="10.16.2"), Maker())
    assert engines(store) == []


def put_file(path: Path) -> None:
    path.write_text("mine")


def put_folder(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def put_link(path: Path) -> None:
    path.symlink_to(path.parent)


@pytest.mark.parametrize("put", [put_file, put_folder, put_link])
def test_what_is_in_the_way_of_a_build_is_named_before_it_is_built(
    store: EngineStore, bundle: Path, put: Callable[[Path], None]
) -> None:
    obtain(store, bundle)
    building = store.folder / "building"
    put(building)
    maker = Maker(replace(WANTED, version="10.16.2"))
    with pytest.raises(RunnerError, match=r"building is in the way") as caught:
        store.obtain(bundle, maker.wanted, maker)
    assert maker.made == 0
    assert str(caught.value.hint).startswith("move it elsewhere")
    assert os.path.lexists(building)
    # What is stored is found nevertheless.
    assert obtain(store, bundle)[1] == 0
    building.rename(bundle / "elsewhere")
    assert store.obtain(bundle, maker.wanted, maker).engine.version == "10.16.2"


def test_a_users_file_in_a_damaged_engines_folder_is_not_in_the_way_of_the_next(
    store: EngineStore, bundle: Path
) -> None:
    obtain(store, bundle)
    folder = store.folder / engines(store)[0]
    (folder / "notes.txt").write_text("mine")
    flip(folder / "segment-00.engine")
    assert obtain(store, bundle)[1] == 1
    assert obtain(store, bundle)[1] == 0
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_store_inside_the_bundle_is_refused(bundle: Path) -> None:
    with pytest.raises(RunnerError, match="is inside the bundle") as caught:
        obtain(EngineStore(bundle / "cache" / "engines"), bundle)
    assert "EDGEKIT_CACHE" in str(caught.value.hint)
    assert not (bundle / "cache").exists()
