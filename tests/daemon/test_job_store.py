"""The store of jobs: what a process that ended left is taken over, and limits hold."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import stat
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.daemon.boot_clock import BootClock, Moment
from edgekit.daemon.job_store import MAX_DEATHS, JobStore, StoreError
from edgekit.daemon.job_types import Job, JobKey, NewJob, Reply, StoreLimits
from edgekit.errors import UnavailableError

NEW = NewJob(JobKey("replies/a", "", "1"), b"digest", b'{"messages": []}', b"correlation", seed=7)


class FakeClock(BootClock):
    """Clocks under the control of a test."""

    def __init__(self, boot: str = "first", seconds: float = 1000.0, wall_s: float = 1_800_000_000.0) -> None:
        super().__init__()
        self.present = Moment(boot, seconds, wall_s)

    def now(self) -> float:
        return self.present.seconds

    def moment(self) -> Moment:
        return self.present

    def go_on(self, seconds: float) -> None:
        self.present = replace(
            self.present, seconds=self.present.seconds + seconds, wall_s=self.present.wall_s + seconds
        )


def numbered(number: int, **changes: object) -> NewJob:
    return replace(NEW, key=JobKey("replies/a", "", str(number)), **changes)  # type: ignore[arg-type]


def find(store: JobStore, new: NewJob = NEW) -> Job:
    job = store.find(new.key)
    assert job is not None
    return job


def replies(store: JobStore) -> list[Reply]:
    found: list[Reply] = []
    while (reply := store.reply(found[-1].n if found else 0)) is not None:
        found.append(reply)
    return found


def taken(store: JobStore, new: NewJob = NEW) -> int:
    with store.transaction():
        return store.add(new).n


def answered(store: JobStore, new: NewJob = NEW, payload: bytes = b"answer") -> int:
    n = taken(store, new)
    with store.transaction():
        store.finish(n, store.begin(n), payload, keep=True)
    return n


def test_a_job_and_its_reply_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(path)
    first, second = taken(store), taken(store, numbered(2))
    with store.transaction():
        attempt = store.begin(first)
        store.finish(first, attempt, b"answer", keep=True)
    store.close()
    store = JobStore(path)
    assert [waiting.n for waiting in store.waiting()] == [second]
    job = find(store)
    assert (job.final, job.attempt, job.body, job.seed) == (b"answer", attempt, None, 7)
    assert replies(store) == [Reply(replies(store)[0].n, NEW.key, attempt, b"correlation", b"answer")]
    with store.transaction():
        store.sent(replies(store)[0].n)
    assert (store.unsent, store.unanswered) == (0, 1)
    store.close()
    store = JobStore(path)
    assert replies(store) == []
    assert find(store).final == b"answer", "the record outlives the delivery"
    store.close()


def test_a_transaction_that_fails_changes_nothing(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    kept = answered(store)
    with suppress(ZeroDivisionError), store.transaction():
        store.add(numbered(2))
        store.drop(kept)
        raise ZeroDivisionError
    assert store.unanswered == 0
    assert store.find(numbered(2).key) is None
    assert find(store).final == b"answer"
    store.close()


@pytest.mark.parametrize("beside", [False, True])
def test_a_job_that_was_running_when_the_process_ended_is_a_suspect_and_alone_it_is_to_blame(
    tmp_path: Path, beside: bool
) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(path)
    taken(store)
    taken(store, numbered(2, digest=b"other"))
    for death in range(1, MAX_DEATHS + 1):
        with store.transaction():
            store.begin(find(store).n)
            if beside:
                store.begin(find(store, numbered(2)).n)
        store.close()
        store = JobStore(path)
        assert [waiting.suspect for waiting in store.waiting()] == [True, beside]
        assert find(store).deaths == (0 if beside else death)
    with store.transaction():
        store.finish(find(store).n, 1, b"refused", keep=True)
    for _ in range(2):
        assert store.is_deadly(NEW.digest) != beside
        store.close()
        store = JobStore(path)
    store.close()


def test_a_job_that_was_released_is_no_suspect(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(path)
    n = taken(store)
    with store.transaction():
        store.begin(n)
    with store.transaction():
        store.release(n)
    store.close()
    store = JobStore(path)
    assert [waiting.suspect for waiting in store.waiting()] == [False]
    store.close()


def test_what_a_killed_process_had_committed_is_there(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def work() -> None:
        store = JobStore(path)
        for number in range(1000):
            with store.transaction():
                for part in range(3):
                    store.add(numbered(3 * number + part, body=b"x" * 5000))
            writer.send(number)

    process = context.Process(target=work)
    process.start()
    for _ in range(20):
        last = reader.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while reader.poll():
        last = reader.recv()
    store = JobStore(path)
    count = len(store.waiting())
    assert count >= 3 * (last + 1)
    assert count % 3 == 0, "a transaction is whole"
    store.close()


def test_a_full_inbox_takes_nothing_until_something_has_left() -> None:
    store = JobStore(None, StoreLimits(jobs=2))
    n = taken(store)
    taken(store, numbered(2))
    for refused in (numbered(3), numbered(4)):
        with pytest.raises(UnavailableError, match="the inbox is full: 2 requests") as caught, store.transaction():
            store.add(refused)
        assert caught.value.code == "overloaded"
    with store.transaction():
        store.finish(n, 1, b"answer", keep=True)
    with pytest.raises(UnavailableError), store.transaction():
        store.add(numbered(3))  # the reply has not left
    with store.transaction():
        store.sent(replies(store)[0].n)
        store.add(numbered(3))
    assert store.unanswered == 2


def test_the_inbox_is_limited_in_bytes_but_takes_one_job_of_any_size() -> None:
    store = JobStore(None, StoreLimits(job_bytes=100))
    n = taken(store, numbered(1, body=b"x" * 500))
    with pytest.raises(UnavailableError), store.transaction():
        store.add(numbered(2, body=b"x"))
    with store.transaction():
        store.finish(n, 1, b"answer", keep=True)
        store.sent(replies(store)[0].n)
        store.add(numbered(3, body=b"x" * 60))
    with pytest.raises(UnavailableError), store.transaction():
        store.add(numbered(4, body=b"x" * 60))


@pytest.mark.parametrize("limits", [StoreLimits(answers=3), StoreLimits(answer_bytes=30)])
def test_the_record_drops_its_oldest_answers_but_not_their_replies(limits: StoreLimits) -> None:
    store = JobStore(None, limits)
    waits = taken(store, numbered(100))
    for number in range(5):
        answered(store, numbered(number), b"answer %03d" % number)
    assert [store.find(numbered(number).key) is not None for number in range(5)] == [False] * 2 + [True] * 3
    assert [reply.payload for reply in replies(store)] == [b"answer %03d" % number for number in range(5)]
    assert [waiting.n for waiting in store.waiting()] == [waits], "what is not answered is never dropped"


def test_an_answer_leaves_the_record_when_it_is_too_old_and_its_id_is_free_again() -> None:
    clock = FakeClock()
    store = JobStore(None, StoreLimits(answer_s=60), clock)
    answered(store)
    clock.go_on(60)
    with store.transaction():
        assert store.find(NEW.key) is not None
    clock.go_on(1)
    with store.transaction():
        assert store.find(NEW.key) is None
        store.add(NEW)
    assert store.unanswered == 1


def test_a_delivery_without_an_id_is_recognized_by_its_number() -> None:
    store = JobStore(None)
    n = taken(store, replace(NEW, delivery=17))
    with store.transaction():
        found = store.find_delivery("replies/a", "", b"digest", 17)
        assert found is not None
        assert found.n == n
        assert store.find_delivery("replies/a", "", b"digest", 18) is None
        assert store.find_delivery("replies/a", "", b"other", 17) is None
        assert store.find_delivery("replies/a", "ann", b"digest", 17) is None


# The time that is left.


def left_s(path: Path, clock: FakeClock) -> float:
    store = JobStore(path, clock=clock)
    (waiting,) = store.waiting()
    store.close()
    assert waiting.due_s is not None
    return waiting.due_s - clock.now()


@pytest.fixture
def limited(tmp_path: Path) -> Path:
    """A store with a job that has 100 s left, at the present of a new `FakeClock`."""
    path = tmp_path / "jobs.sqlite"
    store = JobStore(path, clock=FakeClock())
    taken(store, replace(NEW, limit_s=100.0))
    store.close()
    return path


def test_time_passes_while_the_daemon_is_down(limited: Path) -> None:
    clock = FakeClock(seconds=1030.0, wall_s=0.0)  # whatever the wall clock says
    assert left_s(limited, clock) == 70.0


def test_time_passes_while_the_machine_is_off_if_its_clock_is_right(limited: Path) -> None:
    clock = FakeClock("second", seconds=20.0, wall_s=1_800_000_000.0 + 60)
    assert left_s(limited, clock) == pytest.approx(40.0)
    # At the next boot, and the one after it, the rest.
    assert left_s(limited, FakeClock("third", 5.0, 1_800_000_000.0 + 70)) == pytest.approx(30.0)
    assert left_s(limited, FakeClock("fourth", 5.0, 1_800_000_000.0 + 200)) == pytest.approx(-100.0)


@pytest.mark.parametrize("wall_s", [3.0, 1_799_999_000.0])
def test_without_a_clock_only_the_time_counts_that_the_machine_was_on(limited: Path, wall_s: float) -> None:
    assert left_s(limited, FakeClock("second", seconds=20.0, wall_s=wall_s)) == pytest.approx(80.0)


def test_a_clock_that_is_set_after_the_job_came_does_not_end_it(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    clock = FakeClock(wall_s=12.0)
    store = JobStore(path, clock=clock)
    taken(store, replace(NEW, limit_s=100.0))
    store.close()
    assert left_s(path, FakeClock("second", seconds=20.0)) == pytest.approx(80.0)


def test_a_system_that_does_not_name_its_boots_is_told_by_its_clocks(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(path, clock=FakeClock(""))
    taken(store, replace(NEW, limit_s=100.0))
    store.close()
    assert left_s(path, FakeClock("", seconds=1010.0, wall_s=1_800_000_010.0)) == 90.0
    assert left_s(path, FakeClock("", seconds=10.0, wall_s=1_800_000_040.0)) == pytest.approx(60.0)


# Attempts.


def test_attempts_grow_over_restarts_whatever_happens_to_the_clock_and_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "jobs.sqlite"
    seen: list[int] = []

    def start(count: int) -> None:
        store = JobStore(path)
        for _ in range(count):
            with store.transaction():
                seen.append(store.next_attempt())
        store.close()

    start(50)
    start(50)
    now = time.time_ns()
    with monkeypatch.context() as earlier:
        earlier.setattr(time, "time_ns", lambda: 1_000_000_000)
        start(50)
        start(50)
    path.unlink()
    # As long as a start takes.
    monkeypatch.setattr(time, "time_ns", lambda: now + 60_000_000_000)
    start(50)
    assert seen == sorted(set(seen))
    assert seen[-1] < 2**53, "a reader with 64-bit floats tells them apart"


# Files that cannot be used.


def damage_header(path: Path) -> None:
    path.write_bytes(b"not a database" * 500)


def damage_inside(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def from_the_future(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60:64] = (99).to_bytes(4, "big")
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [damage_header, damage_inside, cut, from_the_future])
def test_a_damaged_file_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: object) -> None:
    path = tmp_path / "jobs.sqlite"
    for _ in range(2):
        store = JobStore(path)
        assert store.waiting() == []
        taken(store)
        store.close()
        harm(path)  # type: ignore[operator]
    store = JobStore(path)
    taken(store)
    store.close()
    assert (tmp_path / "jobs.sqlite.damaged").exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["jobs.sqlite", "jobs.sqlite.damaged"], "one is kept"
    assert "jobs.sqlite.damaged" in caplog.text


def test_a_second_process_cannot_open_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.daemon.job_store.LOCK_WAIT_S", 0.1)
    path = tmp_path / "jobs.sqlite"
    store = JobStore(path)
    taken(store)
    with pytest.raises(StoreError, match="locked"):
        JobStore(path)
    store.close()
    assert len(JobStore(path).waiting()) == 1


def test_only_its_owner_reads_the_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = JobStore(tmp_path / "jobs.sqlite")
        taken(store)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    store.close()


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(path)
    taken(store)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(file.stat().st_size for file in tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 100_000, before[1]))
    accepted: list[int] = []
    try:
        for number in range(2, 12):
            with suppress(StoreError):
                accepted.append(taken(store, numbered(number, body=b"x" * 5000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 0 < len(accepted) < 10
    assert len(store.waiting()) == store.unanswered == 1 + len(accepted)
    taken(store, numbered(100, body=b"x" * 5000))
    store.close()
    store = JobStore(path)
    assert len(store.waiting()) == 2 + len(accepted)
    store.close()
