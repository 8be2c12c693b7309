from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.daemon.log_file import LogFile
from tests.daemon.mqtt.conftest import eventually


@pytest.fixture
def log(tmp_path: Path) -> Iterator[int]:
    # Without O_APPEND, in case launchd opens it so.
    descriptor = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    yield descriptor
    os.close(descriptor)


def write(descriptor: int, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        os.write(descriptor, f"line {number:05d}\n".encode())


def test_a_large_log_is_cut_to_its_newest_lines_and_written_on(log: int, tmp_path: Path) -> None:
    file = LogFile(log, max_bytes=5000, keep_bytes=1000, interval_s=60)
    file.start()
    try:
        write(log, 400)
        assert not file.cut()
        write(log, 100, 400)
        assert file.cut()
        write(log, 1, 500)
    finally:
        file.stop()
    lines = (tmp_path / "log").read_bytes().decode().splitlines()
    assert lines == [f"line {number:05d}" for number in range(410, 501)]


def test_no_line_is_lost_while_the_log_is_cut_again_and_again(log: int, tmp_path: Path) -> None:
    handler = logging.StreamHandler(os.fdopen(os.dup(log), "w"))
    logging.getLogger().addHandler(handler)
    file = LogFile(log, max_bytes=2000, keep_bytes=1000, interval_s=0.001)
    file.start()
    try:
        for number in range(3000):
            logging.getLogger("test").warning("number %d", number)
    finally:
        file.stop()
        logging.getLogger().removeHandler(handler)
        handler.stream.close()
    numbers = [int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines() if "number" in line]
    assert len(numbers) < 3000
    assert numbers == list(range(numbers[0], 3000))


def test_a_log_that_may_not_be_read_is_emptied(log: int, tmp_path: Path) -> None:
    file = LogFile(log, max_bytes=50, keep_bytes=20)
    write(log, 10)
    (tmp_path / "log").rename(tmp_path / "moved")
    (tmp_path / "moved").unlink()
    assert file.cut()
    assert os.fstat(log).st_size == 0


def test_a_log_that_cannot_be_cut_for_a_while_is_cut_later(
    log: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = 0

    def refuse(*_: object) -> None:
        nonlocal tried
        tried += 1
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    file = LogFile(log, max_bytes=100, keep_bytes=50, interval_s=0.001)
    write(log, 50)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        file.start()
        assert eventually(lambda: tried > 3)
    assert eventually(lambda: os.fstat(log).st_size < 100)
    file.stop()
    assert len([record for record in caplog.records if "cannot be cut" in record.message]) == 1


def test_a_pipe_or_terminal_is_left_alone() -> None:
    reader, writer = os.pipe()
    others = {*threading.enumerate()}
    file = LogFile(writer, interval_s=0.001)
    file.start()
    time.sleep(0.02)
    assert "log-file" not in {thread.name for thread in {*threading.enumerate()} - others}
    file.stop()
    os.close(reader)
    os.close(writer)
