from __future__ import annotations

from pathlib import Path

from edgekit.daemon.crash_loop import CrashLoop


def loop(path: Path, now: float) -> CrashLoop:
    return CrashLoop(path, limit=3, window_s=100, now=lambda: now)


def test_the_start_after_the_limit_is_refused_and_the_one_after_that_is_not(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    assert [loop(path, 1000 + n).enter() for n in range(5)] == [True, True, True, False, True]


def test_starts_that_lie_long_back_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    assert all(loop(path, 1000 + 60 * n).enter() for n in range(10))


def test_a_clean_end_forgets_the_starts(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    for n in range(10):
        one = loop(path, 1000 + n)
        assert one.enter()
        one.leave()
    assert not path.exists()


def test_a_damaged_or_unwritable_file_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    path.write_bytes(b"\xff nonsense\n")
    assert loop(path, 1000).enter()
    assert loop(tmp_path / "no/such/folder", 1000).enter()


def test_a_clock_that_was_set_back_is_no_crash_loop(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    for n in range(3):
        loop(path, 5000 + n).enter()
    assert loop(path, 1000).enter()
