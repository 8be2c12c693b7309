from __future__ import annotations

import logging
import threading

import pytest

from edgekit.daemon.warmup import Warmup
from edgekit.errors import EdgekitError


def test_it_waits_until_no_request_is_running() -> None:
    busy, done = threading.Event(), threading.Event()
    busy.set()
    warmup = Warmup(done.set, busy.is_set)
    warmup.start()
    assert not done.wait(0.8)
    busy.clear()
    assert done.wait(20)
    warmup.stop()


def test_stopping_skips_work_that_has_not_begun_and_waits_for_work_that_has() -> None:
    others = {*threading.enumerate()}
    waiting = Warmup(lambda: pytest.fail("it was begun"), lambda: True)
    waiting.start()
    waiting.stop()
    started = (thread for thread in {*threading.enumerate()} - others if thread.name == "warmup")
    assert not any(thread.is_alive() for thread in started)
    begun, over = threading.Event(), []

    def work() -> None:
        begun.set()
        threading.Event().wait(0.3)
        over.append(True)

    working = Warmup(work, lambda: False)
    working.start()
    assert begun.wait(20)
    working.stop()
    assert over == [True]
    Warmup(work, lambda: False).stop()


@pytest.mark.parametrize(
    ("error", "level"), [(EdgekitError("no such bytes"), logging.INFO), (MemoryError(), logging.ERROR)]
)
def test_a_failure_is_only_logged(error: Exception, level: int, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise error

    with caplog.at_level(logging.INFO, "edgekit.daemon.warmup"):
        warmup = Warmup(fail, lambda: False)
        warmup.start()
        warmup.stop()
    assert [record.levelno for record in caplog.records] == [level]
