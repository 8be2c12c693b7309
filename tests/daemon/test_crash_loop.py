from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.daemon import app
from edgekit.daemon.crash_loop import CrashLoop


def loop(path: Path, now: float) -> CrashLoop:
    return CrashLoop(path, limit=3, window_s=100, now=lambda: now)


def test_the_start_after_the_limit_is_refused_and_the_next_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    assert [loop(path, 1000 + n).enter() for n in range(5)] == [True, True, True, False, True]


def test_old_starts_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    assert all(loop(path, 1000 + 60 * n).enter() for n in range(10))


def test_a_clean_exit_clears_the_record(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    for n in range(10):
        one = loop(path, 1000 + n)
        assert one.enter()
        one.leave()
    assert not path.exists()


def test_a_damaged_or_unwritable_file_does_not_stop_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    path.write_bytes(b"\xff nonsense\n")
    assert loop(path, 1000).enter()
    assert loop(tmp_path / "no/such/folder", 1000).enter()


def test_the_state_folder_is_made_and_one_that_cannot_be_made_does_not_stop_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "is_launchd_job", lambda: True)
    monkeypatch.setenv("EDGEKIT_STATE", str(tmp_path / "new" / "state"))
    made = app._crash_loop()
    assert made is not None
    assert made.enter()
    assert (tmp_path / "new" / "state" / "starts").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEKIT_STATE", str(tmp_path / "file" / "state"))
    unable = app._crash_loop()
    assert unable is not None
    assert unable.enter()
    assert "cannot be written" in caplog.text


def test_a_clock_set_back_is_not_a_crash_loop(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    for n in range(3):
        loop(path, 5000 + n).enter()
    assert loop(path, 1000).enter()


def test_a_start_at_the_edge_of_the_window_counts_and_an_older_one_does_not(tmp_path: Path) -> None:
    for name, first, goes_on in (("edge", 900, False), ("older", 899, True)):
        path = tmp_path / name
        for start in (first, 950, 960):
            assert loop(path, start).enter()
        assert loop(path, 1000).enter() is goes_on


def test_a_start_at_this_very_second_counts(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    assert [loop(path, 1000).enter() for _ in range(4)] == [True, True, True, False]


def test_giving_up_is_logged_with_the_number_of_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = CrashLoop(tmp_path / "starts", limit=2, window_s=900, now=lambda: 1000)
    assert [one.enter() for _ in range(3)] == [True, True, False]
    assert "started 2 times in 15 minutes" in caplog.text
    one.leave()
    assert "cannot be removed" not in caplog.text
