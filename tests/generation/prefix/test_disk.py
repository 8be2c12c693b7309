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
# With its header, a block occupies two pages.
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


def stored(store: DiskStore) -> list[int]:
    return [number for number in range(100) if store.get(key(number)) == data(number)]


def files(folder: Path) -> list[Path]:
    return sorted((folder / "prefix").glob("*.kv"))


def taken(folder: Path) -> int:
    """Bytes of everything in the folder, in full pages."""
    return sum(-(-size(entry) // PAGE) * PAGE for entry in os.scandir(folder / "prefix"))


def size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def test_blocks_survive_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 1, 2, 3)
    with opened(tmp_path) as store:
        assert stored(store) == [1, 2, 3]
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
        assert stored(store) == [1]


def test_closing_writes_queued_blocks(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=1 << 20, fingerprint="model")
    for number in range(10):
        store.put(key(number), data(number))
    store.close()
    assert not store.put(key(20), data(20))
    with opened(tmp_path) as store:
        assert stored(store) == list(range(10))


def test_only_the_owner_can_read_the_files_even_in_an_existing_folder(tmp_path: Path) -> None:
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


def test_the_size_limit_holds_at_every_moment(tmp_path: Path) -> None:
    peak, done = 0, threading.Event()
    with opened(tmp_path, blocks=3) as store:

        def watch() -> None:
            nonlocal peak
            while not done.is_set():
                peak = max(peak, taken(tmp_path))

        watcher = threading.Thread(target=watch)
        watcher.start()
        fill(store, *range(60))
        done.set()
        watcher.join()
        assert stored(store) == [57, 58, 59]
        assert store.stats().evictions == 57
    assert 2 * BLOCK <= peak <= 3 * BLOCK


def test_a_block_larger_than_the_limit_is_not_stored(tmp_path: Path) -> None:
    with opened(tmp_path, blocks=1) as store:
        assert not store.put(key(1), bytes(DATA + 1))
        assert store.capacity(DATA) == 1
        assert store.capacity(DATA + 1) == 0
        fill(store, 1)


def test_a_smaller_limit_evicts_the_oldest_at_the_next_start(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 1, 2, 3, 4)
    with opened(tmp_path, blocks=2) as store:
        assert taken(tmp_path) == 2 * BLOCK
        assert stored(store) == [3, 4]


def test_the_lru_order_survives_a_restart_whatever_the_clock_says(
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
        assert stored(store) == [1, 2, 4]
        fill(store, 5)
        assert stored(store) == [2, 4, 5]


def test_a_used_chain_is_evicted_from_its_end(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 1, 2, 3)
        store.touch([key(1), key(2), key(3)])
        store.flush(10)
    with opened(tmp_path, blocks=3) as store:
        fill(store, 4)
        assert stored(store) == [1, 2, 4]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def flip_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES - 1] ^= 128
    path.write_bytes(content)


def forget_pages(path: Path) -> None:
    """As after a power cut: the right length, but zeros where a page was never written."""
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
            assert stored(store) == [1, 2]
    if when == "stopped":
        damage(victim)
        with opened(tmp_path) as store:
            assert stored(store) == [2]
            assert not os.path.lexists(victim)
            fill(store, 1)
            assert stored(store) == [1, 2]


def test_two_swapped_files_are_not_served(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 1, 2, 3)
        one, two, _ = files(tmp_path)
        one.rename(tmp_path / "x")
        two.rename(one)
        (tmp_path / "x").rename(two)
        assert stored(store) == [3]
        assert store.stats().damaged == 2


def test_a_file_removed_from_outside_is_noticed_and_written_again(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 1)
        files(tmp_path)[0].unlink()
        assert store.get(key(1)) is None
        fill(store, 1)
        assert stored(store) == [1]
        assert store.stats().damaged == 0


def test_files_of_other_models_are_removed_at_the_start_and_all_else_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with opened(tmp_path, fingerprint="old model") as store:
        fill(store, 1)
    folder = tmp_path / "prefix"
    (tmp_path / "precious").write_text("x")
    (folder / "writing.tmp").write_text("half a block")
    (folder / "some.file").write_text("x")
    (folder / "link.kv").symlink_to(tmp_path / "precious")
    (folder / f"{files(tmp_path)[0].name}.bak").write_text("x")
    (folder / "sub").mkdir()
    old = files(tmp_path)[0]
    with opened(tmp_path) as store:
        assert stored(store) == []
        assert not old.exists()
        left = {path.name for path in folder.iterdir()}
        assert left == {"edgekit-prefix-cache", "some.file", "link.kv", f"{old.name}.bak", "sub"}
        assert (tmp_path / "precious").read_text() == "x"
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        f"removed 2 files of other models or unfinished ones from {folder}",
        f"{folder} has 4 entries that are not of the prefix cache; they stay",
    ]


def users_folder(folder: Path) -> None:
    (folder / "prefix").mkdir(mode=0o755)


def users_link(folder: Path) -> None:
    (folder / "elsewhere").mkdir(mode=0o755)
    (folder / "prefix").symlink_to("elsewhere")


def link_to_a_cache(folder: Path) -> None:
    with opened(folder / "other"):
        pass
    (folder / "prefix").symlink_to("other/prefix")


def linked_marker(folder: Path) -> None:
    (folder / "prefix").mkdir(mode=0o755)
    (folder / "precious").write_text("x")
    (folder / "prefix" / "edgekit-prefix-cache").symlink_to(folder / "precious")


@pytest.mark.parametrize("make", [users_folder, users_link, link_to_a_cache, linked_marker])
def test_a_folder_that_is_not_the_caches_is_not_touched_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None]
) -> None:
    make(tmp_path)
    folder = tmp_path / "prefix"
    # Even files that could be the cache's: without a marker it is not known whose they are.
    for name in ("letter.txt", "writing.tmp", f"{'0' * 16}-{'0' * 64}.kv"):
        (folder / name).write_text("x")
    before = {path: path.lstat().st_mode for path in tmp_path.rglob("*")}
    with opened(tmp_path) as store:
        assert not store.active
        assert not store.put(key(1), data(1))
        assert store.get(key(1)) is None
    assert {path: path.lstat().st_mode for path in tmp_path.rglob("*")} == before
    (record,) = caplog.records
    assert record.getMessage().startswith(f"prefixes are not cached on disk: {folder}: ")


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


def test_a_second_process_runs_without_the_folder_and_gets_it_once_the_first_is_killed(
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
    """Root may write anywhere; switch to an unprivileged user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_unusable_folder_is_logged_once_and_nothing_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with opened(tmp_path / "file") as store:
        assert not store.active
        assert not store.put(key(1), data(1))
        assert store.get(key(1)) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_folder_that_becomes_read_only_is_logged_once_still_read_and_written_again_when_possible(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not pytest's folder, which only its owner may enter.
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        with unprivileged(), opened(folder, blocks=3) as store:
            fill(store, 1, 2)
            (folder / "prefix").chmod(0o500)
            for number in (3, 4):
                store.put(key(number), data(number))
                store.flush(10)
            assert stored(store) == [1, 2]
            flip(files(folder)[0])
            assert stored(store) == [2]
            assert key(1) not in store
            warnings = [record.getMessage() for record in caplog.records if "for now" in record.getMessage()]
            assert len(warnings) == 1
            assert warnings[0].endswith("Permission denied")
            assert not store.put(key(5), data(5))

            (folder / "prefix").chmod(0o700)
            monkeypatch.setattr(store, "_paused_until", 0.0)
            fill(store, 1, 6, 7)
            assert stored(store) == [1, 6, 7]
            assert taken(folder) == 3 * BLOCK


def test_a_full_disk_is_logged_once_and_leaves_no_partial_block(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path) as store:
        fill(store, 1)
        try:
            # Files cannot grow beyond a page, so the write fails in the middle, as on a full disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, limits[1]))
            assert store.put(key(2), data(2))
            assert store.flush(10)
            assert not store.put(key(3), data(3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert stored(store) == [1]
        assert taken(tmp_path) == BLOCK
        assert store.stats().dropped == 1
        assert len(caplog.records) == 1
        monkeypatch.setattr(store, "_paused_until", 0.0)
        fill(store, 2)
        assert stored(store) == [1, 2]


def hold(monkeypatch: pytest.MonkeyPatch, name: str) -> threading.Event:
    """Let `read_block` or `write_block` hang until the event is set, as on a hanging disk."""
    go = threading.Event()
    real = getattr(disk, name)

    def slow(*arguments: object, **named: object) -> object:
        assert go.wait(60)
        return real(*arguments, **named)

    monkeypatch.setattr(disk, name, slow)
    return go


def test_saving_never_waits_for_the_disk_and_what_does_not_fit_the_queue_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = hold(monkeypatch, "write_block")
    with opened(tmp_path, queue_bytes=4 * DATA) as store:
        started = time.monotonic()
        taken_in = [store.put(key(number), data(number)) for number in range(6)]
        assert time.monotonic() - started < 30
        assert taken_in == [True] * 4 + [False] * 2
        assert store.stats().dropped == 2
        go.set()
        store.flush(10)
        assert stored(store) == [0, 1, 2, 3]


def test_closing_abandons_a_write_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = hold(monkeypatch, "write_block")
    store = DiskStore(tmp_path, max_bytes=1 << 20, fingerprint="model")
    for number in range(3):
        store.put(key(number), data(number))
    started = time.monotonic()
    store.close(flush_s=0.2)
    assert time.monotonic() - started < 30
    assert store._writer
    assert store._writer.daemon, "it does not keep the process from ending"
    go.set()
    store._writer.join(10)
    assert len(files(tmp_path)) == 1
    with opened(tmp_path) as store:
        assert stored(store) == [0]


def test_nothing_more_is_read_while_a_read_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as store:
        fill(store, 1, 2)
        go = hold(monkeypatch, "read_block")
        reader = threading.Thread(target=store.get, args=(key(1),))
        reader.start()
        while not store._reading:
            time.sleep(0.001)
        store.mark_stalled()
        assert key(2) not in store
        assert store.get(key(2)) is None
        go.set()
        reader.join(10)
        assert key(2) in store
        assert stored(store) == [1, 2]
