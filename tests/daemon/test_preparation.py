from __future__ import annotations

import logging
import threading

import pytest

from edgekit.daemon.preparation import Preparation
from edgekit.errors import EdgekitError
from tests.daemon.mqtt.conftest import eventually


def test_it_waits_until_nobody_is_being_answered() -> None:
    busy, done = threading.Event(), threading.Event()
    busy.set()
    preparation = Preparation(done.set, busy.is_set)
    preparation.start()
    assert not done.wait(0.8)
    busy.clear()
    assert done.wait(5)
    preparation.stop()


def test_stopping_gives_up_what_has_not_begun_and_waits_for_what_has() -> None:
    waiting = Preparation(lambda: pytest.fail("it was begun"), lambda: True)
    waiting.start()
    waiting.stop()
    assert not eventually(lambda: any(thread.name == "preparation" for thread in threading.enumerate()), 0.1)
    begun, over = threading.Event(), []

    def work() -> None:
        begun.set()
        threading.Event().wait(0.3)
        over.append(True)

    working = Preparation(work, lambda: False)
    working.start()
    assert begun.wait(5)
    working.stop()
    assert over == [True]
    Preparation(work, lambda: False).stop()


@pytest.mark.parametrize(
    ("error", "level"), [(EdgekitError("no such bytes"), logging.INFO), (MemoryError(), logging.ERROR)]
)
def test_what_fails_is_in_the_log_and_nowhere_else(
    error: Exception, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error

    with caplog.at_level(logging.INFO, "edgekit.daemon.preparation"):
        preparation = Preparation(fail, lambda: False)
        preparation.start()
        preparation.stop()
    assert [record.levelno for record in caplog.records] == [level]
