from __future__ import annotations

import logging
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from edgekit.generation.prefix import disk
from edgekit.generation.prefix.block_file import HEADER_BYTES
from edgekit.generation.prefix.disk import DiskStore

PAGE = 4096
# A block that takes two pages with its header.
DATA = 2 * PAGE - HEADER_BYTES
BLOCK = 2 * PAGE


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def data(number: int) -> bytes:
    return bytes([number % 256]) * DATA


@contextmanager
def opened(
    folder: Path, *, blocks: int = 100, fingerprint: str = "model", queue_bytes: int = 1 << 20
) -> Iterator[DiskStore]:
    store = DiskStore(folder, max_bytes=blocks * BLOCK, fingerprint=fingerprint, queue_bytes=queue_bytes)
    try:
        yield store
    finally:
        store.close()


def fill(store: DiskStore, *numbers: int) -> None:
    for number in numbers:
        assert store.put(key(number), data(number))
    assert store.flush(10)


def held(store: DiskStore) -> list[int]:
    return [number for number in range(100) if store.get(key(number)) == data(number)]


def files(folder: Path) -> list[Path]:
    return sorted((folder / "prefix").glob("*.kv"))


def taken(folder: Path) -> int:
    """Bytes of everything in the folder, in whole pages."""
    return sum(-(-size(entry) // PAGE) * PAGE for entry in os.scandir(folder / "prefix"))


def size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 1, 2, 3)
    with opened(tmp_path) as store:
        assert held(store) == [1, 2, 3]
        assert key(4) not in store
        stats = store.stats()
        assert (stats.blocks, stats.used_bytes, stats.read_bytes) == (3, 3 * BLOCK, 3 * DATA)


def test_a_block_can_be_read_while_it_waits_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = hold(monkeypatch, "write_block")
    with opened(tmp_path) as store:
        store.put(key(1), data(1))
        assert key(1) in store
        assert store.get(key(1)) == data(1)
        assert not files(tmp_path)
        go.set()
        assert store.flush(10)
        assert len(files(tmp_path)) == 1
        assert held(store) == [1]


def test_closing_writes_what_is_queued(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=1 << 20, fingerprint="model")
    for number in range(10):
        store.put(key(number), data(number))
    store.close()
    assert not store.put(key(20), data(20))
    with opened(tmp_path) as store:
        assert held(store) == list(range(10))


def test_only_the_owner_can_read_the_files_even_in_a_folder_made_by_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "prefix").mkdir(mode=0o777)
    before = os.umask(0)
    try:
        with opened(tmp_path) as store:
            fill(store, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "prefix").stat().st_mode) == 0o700
    for path in (tmp_path / "prefix").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_cap_is_kept_at_every_moment(tmp_path: Path) -> None:
    most, done = 0, threading.Event()
    with opened(tmp_path, blocks=3) as store:

        def watch() -> None:
            nonlocal most
            while not done.is_set():
                most = max(most, taken(tmp_path))

        watcher = threading.Thread(target=watch)
        watcher.start()
        fill(store, *range(60))
        done.set()
        watcher.join()
        assert held(store) == [57, 58, 59]
        assert store.stats().evictions == 57
    assert 2 * BLOCK <= most <= 3 * BLOCK


def test_a_block_larger_than_the_cap_is_not_taken(tmp_path: Path) -> None:
    with opened(tmp_path, blocks=1) as store:
        assert not store.put(key(1), bytes(DATA + 1))
        assert store.capacity(DATA) == 1
        assert store.capacity(DATA + 1) == 0
        fill(store, 1)


def test_a_smaller_cap_removes_the_oldest_at_the_next_start(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 1, 2, 3, 4)
    with opened(tmp_path, blocks=2) as store:
        assert taken(tmp_path) == 2 * BLOCK
        assert held(store) == [3, 4]


def test_what_was_used_last_stays_after_a_restart_too_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        fill(store, 1, 2, 3)
        store.touch([key(1)])
        store.flush(10)
    monkeypatch.setattr(time, "time_ns", lambda: 1_000)
    with opened(tmp_path, blocks=4) as store:
        fill(store, 4)
        store.touch([key(2)])
        store.flush(10)
    with opened(tmp_path, blocks=3) as store:
        assert held(store) == [1, 2, 4]
        fill(store, 5)
        assert held(store) == [2, 4, 5]


def test_a_chain_that_was_used_is_given_up_from_its_end(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 1, 2, 3)
        store.touch([key(1), key(2), key(3)])
        store.flush(10)
    with opened(tmp_path, blocks=3) as store:
        fill(store, 4)
        assert held(store) == [1, 2, 4]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def flip_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES - 1] ^= 128
    path.write_bytes(content)


def forget_pages(path: Path) -> None:
    """As after a power cut: the right length, and nothing where a page was never written."""
    with path.open("r+b") as file:
        file.seek(PAGE)
        file.write(bytes(PAGE))


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGES = [
    flip,
    flip_header,
    forget_pages,
    replace_by_pipe,
    replace_by_link,
    lambda path: os.truncate(path, 0),
    lambda path: os.truncate(path, 20),
    lambda path: os.truncate(path, BLOCK - 1),
    lambda path: os.truncate(path, BLOCK + 1),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("when", ["running", "stopped"])
def test_a_damaged_file_is_not_served_and_is_removed(tmp_path: Path, damage: Callable[[Path], None], when: str) -> None:
    with opened(tmp_path) as store:
        fill(store, 1, 2)
        victim = files(tmp_path)[0]
        if when == "running":
            damage(victim)
            assert store.get(key(1)) is None
            assert not os.path.lexists(victim)
            assert key(1) not in store
            fill(store, 1)
            assert held(store) == [1, 2]
    if when == "stopped":
        damage(victim)
        with opened(tmp_path) as store:
            assert held(store) == [2]
            assert not os.path.lexists(victim)
            fill(store, 1)
            assert held(store) == [1, 2]


def test_two_files_that_changed_places_are_not_served(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 1, 2, 3)
        one, two, _ = files(tmp_path)
        one.rename(tmp_path / "x")
        two.rename(one)
        (tmp_path / "x").rename(two)
        assert held(store) == [3]
        assert store.stats().damaged == 2


def test_a_file_that_somebody_removed_is_missed_and_written_again(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 1)
        files(tmp_path)[0].unlink()
        assert store.get(key(1)) is None
        fill(store, 1)
        assert held(store) == [1]
        assert store.stats().damaged == 0


def test_what_is_not_this_models_is_removed_at_the_start_and_folders_are_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path, fingerprint="old model") as store:
        fill(store, 1)
    folder = tmp_path / "prefix"
    (tmp_path / "precious").write_text("x")
    (folder / "writing.tmp").write_text("half a block")
    (folder / "some.file").write_text("x")
    (folder / "link.kv").symlink_to(tmp_path / "precious")
    (folder / "sub").mkdir()
    with opened(tmp_path) as store:
        assert held(store) == []
        assert sorted(path.name for path in folder.iterdir()) == ["lock", "sub"]
        assert (tmp_path / "precious").read_text() == "x"


def test_another_models_block_under_this_models_name_is_not_served(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 1)
    name = files(tmp_path)[0]
    with opened(tmp_path, fingerprint="other") as store:
        fill(store, 1)
    files(tmp_path)[0].rename(name)
    with opened(tmp_path) as store:
        assert key(1) in store
        assert store.get(key(1)) is None


def test_a_second_process_on_the_folder_goes_without_and_gets_it_once_the_first_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = (
        "import sys, time; from pathlib import Path; from edgekit.generation.prefix import DiskStore\n"
        "store = DiskStore(Path(sys.argv[1]), max_bytes=1 << 20, fingerprint='model')\n"
        "store.put(bytes(32), b'x' * 100); store.flush(10); print('ready', flush=True); time.sleep(60)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout
        assert first.stdout.readline() == "ready\n"
        with opened(tmp_path) as second:
            assert not second.active
            assert not second.put(key(1), data(1))
            assert second.get(bytes(32)) is None
            second.touch([bytes(32)])
        (record,) = caplog.records
        assert record.getMessage().endswith("another process uses it")
        assert len(files(tmp_path)) == 1
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with opened(tmp_path) as second:
        assert second.get(bytes(32)) == b"x" * 100


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anywhere; become somebody who may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_cannot_be_used_is_said_once_and_nothing_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with opened(tmp_path / "file") as store:
        assert not store.active
        assert not store.put(key(1), data(1))
        assert store.get(key(1)) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_folder_that_becomes_read_only_is_said_once_still_read_and_written_again_when_it_can_be(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not pytest's folder: nobody but its owner may enter that.
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        with unprivileged(), opened(folder, blocks=3) as store:
            fill(store, 1, 2)
            (folder / "prefix").chmod(0o500)
            for number in (3, 4):
                store.put(key(number), data(number))
                store.flush(10)
            assert held(store) == [1, 2]
            flip(files(folder)[0])
            assert held(store) == [2]
            assert key(1) not in store
            warnings = [record.getMessage() for record in caplog.records if "for now" in record.getMessage()]
            assert len(warnings) == 1
            assert warnings[0].endswith("Permission denied")
            assert not store.put(key(5), data(5))

            (folder / "prefix").chmod(0o700)
            monkeypatch.setattr(store, "_quiet_until", 0.0)
            fill(store, 1, 6, 7)
            assert held(store) == [1, 6, 7]
            assert taken(folder) == 3 * BLOCK


def test_a_full_disk_is_said_once_and_leaves_no_half_block(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path) as store:
        fill(store, 1)
        try:
            # A file may not grow beyond a page: the write ends in the middle, as on a full disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, limits[1]))
            assert store.put(key(2), data(2))
            assert store.flush(10)
            assert not store.put(key(3), data(3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert held(store) == [1]
        assert taken(tmp_path) == BLOCK
        assert store.stats().dropped == 1
        assert len(caplog.records) == 1
        monkeypatch.setattr(store, "_quiet_until", 0.0)
        fill(store, 2)
        assert held(store) == [1, 2]


def hold(monkeypatch: pytest.MonkeyPatch, name: str) -> threading.Event:
    """Let `read_block` or `write_block` hang until the event is set, as on a disk that does not answer."""
    go = threading.Event()
    real = getattr(disk, name)

    def slow(*arguments: object, **named: object) -> object:
        assert go.wait(60)
        return real(*arguments, **named)

    monkeypatch.setattr(disk, name, slow)
    return go


def test_who_saves_never_waits_for_the_disk_and_what_does_not_fit_the_queue_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = hold(monkeypatch, "write_block")
    with opened(tmp_path, queue_bytes=4 * DATA) as store:
        started = time.monotonic()
        taken_in = [store.put(key(number), data(number)) for number in range(6)]
        assert time.monotonic() - started < 1
        assert taken_in == [True] * 4 + [False] * 2
        assert store.stats().dropped == 2
        go.set()
        store.flush(10)
        assert held(store) == [0, 1, 2, 3]


def test_closing_leaves_a_write_that_hangs_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = hold(monkeypatch, "write_block")
    store = DiskStore(tmp_path, max_bytes=1 << 20, fingerprint="model")
    for number in range(3):
        store.put(key(number), data(number))
    started = time.monotonic()
    store.close(flush_s=0.2)
    assert time.monotonic() - started < 2
    go.set()
    assert store._writer
    store._writer.join(10)
    assert len(files(tmp_path)) == 1
    with opened(tmp_path) as store:
        assert held(store) == [0]


def test_nothing_more_is_read_while_a_read_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as store:
        fill(store, 1, 2)
        go = hold(monkeypatch, "read_block")
        reader = threading.Thread(target=store.get, args=(key(1),))
        reader.start()
        while not store._reading:
            time.sleep(0.001)
        store.late()
        assert key(2) not in store
        assert store.get(key(2)) is None
        go.set()
        reader.join(10)
        assert key(2) in store
        assert held(store) == [1, 2]
