"""Requests that ended the daemon while they were prepared."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from edgekit.daemon.mqtt.crash_marks import CrashMarks


def test_a_request_that_ended_two_starts_is_not_prepared_a_third_time(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "marks"
    assert CrashMarks(folder).begin("a")
    assert CrashMarks(folder).begin("a")
    assert CrashMarks(folder).begin("b"), "another request"
    assert not CrashMarks(folder).begin("a")
    assert not CrashMarks(folder).begin("a")


def test_without_a_folder_every_request_is_prepared() -> None:
    marks = CrashMarks(None)
    assert all(marks.begin("a") for _ in range(4))
    marks.end("a")


def test_a_prepared_request_leaves_no_mark(tmp_path: Path) -> None:
    marks = CrashMarks(tmp_path)
    for _ in range(5):
        assert marks.begin("a")
        marks.end("a")
    assert [*tmp_path.iterdir()] == []


def test_marks_are_kept_for_a_day_and_not_without_end(tmp_path: Path) -> None:
    old, new = (hashlib.sha256(name).hexdigest() for name in (b"old", b"new"))
    for name in (old, new):
        for _ in range(2):
            assert CrashMarks(tmp_path).begin(name)
    day_ago = time.time() - 90_000
    os.utime(tmp_path / old, (day_ago, day_ago))
    marks = CrashMarks(tmp_path)
    assert marks.begin(old)
    assert not marks.begin(new)
    earlier = time.time() - 1000
    os.utime(tmp_path / new, (earlier, earlier))
    for number in range(1200):
        (tmp_path / f"{number:064x}").write_text("1\n")
    CrashMarks(tmp_path)
    assert len([*tmp_path.iterdir()]) == 1000
    assert not (tmp_path / new).exists(), "the oldest go first"


def test_what_is_no_mark_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ("0" * 64)).mkdir()
    (tmp_path / ("1" * 64)).symlink_to(tmp_path / "nowhere")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    stale = tmp_path / ("2" * 64)
    stale.write_text("1\n")
    os.utime(stale, (0, 0))
    CrashMarks(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0" * 64, "1" * 64, "notes.txt"]


def test_an_empty_mark_counts_as_one_start(tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(b"")
    assert CrashMarks(tmp_path).begin("torn")
    assert not CrashMarks(tmp_path).begin("torn")


def test_a_folder_that_cannot_be_used_does_not_keep_requests_from_being_prepared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    marks = CrashMarks(tmp_path / "file" / "marks")
    assert marks.begin("a")
    marks.end("a")
    assert "cannot be" in caplog.text
