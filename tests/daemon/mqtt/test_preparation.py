"""The thread that prepares requests."""

from __future__ import annotations

import threading

import pytest

from edgekit.daemon.mqtt import preparation
from edgekit.daemon.mqtt.preparation import Preparation


def test_tasks_run_in_order_and_one_that_fails_ends_no_other(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    ended = threading.Event()
    tasks = Preparation()
    # Before the start too.
    tasks.add(lambda: done.append(1))
    tasks.add(lambda: done.append(1 // 0))
    tasks.start()
    tasks.add(lambda: done.append(2))
    tasks.add(ended.set)
    assert ended.wait(60)
    tasks.stop(60)
    assert done == [1, 2]
    assert "preparing a request failed" in caplog.text


def test_stopping_drops_what_has_not_begun_and_waits_for_the_current_task() -> None:
    begun, go = threading.Event(), threading.Event()
    done: list[str] = []

    def first() -> None:
        begun.set()
        assert go.wait(60)
        done.append("first")

    others = {*threading.enumerate()}
    tasks = Preparation()
    tasks.start()
    tasks.add(first)
    tasks.add(lambda: done.append("second"))
    assert begun.wait(60)
    tasks.stop(0)
    assert done == []
    (hanging,) = (thread for thread in {*threading.enumerate()} - others if thread.name == "edgekit-mqtt-preparation")
    assert hanging.daemon, "it does not keep the process from ending"
    go.set()
    tasks.stop(60)
    assert done == ["first"]
    assert not hanging.is_alive()


def test_the_current_task_tells_how_long_it_has_been_running(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 100.0

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

    monkeypatch.setattr(preparation, "time", Clock)
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def task() -> None:
        begun.set()
        assert go.wait(60)

    tasks = Preparation()
    assert tasks.seconds_since_heartbeat() == 0
    tasks.start()
    tasks.add(task)
    tasks.add(ended.set)
    assert begun.wait(60)
    Clock.now = 107.0
    assert tasks.seconds_since_heartbeat() == 7
    go.set()
    assert ended.wait(60)
    tasks.stop(60)
    assert tasks.seconds_since_heartbeat() == 0


def test_stopping_before_the_start_is_harmless() -> None:
    Preparation().stop(60)
