from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.daemon.health import Watchdog
from edgekit.daemon.notify import Notifier
from tests.daemon.manager import Manager

pytestmark = pytest.mark.serial


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


def test_the_watchdog_is_fed_only_during_heartbeats(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    beat = time.monotonic()
    frozen = threading.Event()

    def age() -> float:
        return time.monotonic() - beat if frozen.is_set() else 0.0

    watchdog = Watchdog(age, Notifier({"NOTIFY_SOCKET": manager.name}), interval_s=0.05, limit_s=0.2)
    watchdog.start()
    try:
        assert manager.count("WATCHDOG=1", 0.5) >= 5
        healthy = [watchdog.healthy]
        beat = time.monotonic()
        frozen.set()
        manager.count("WATCHDOG=1", 0.4)
        assert manager.count("WATCHDOG=1", 0.5) == 0
        healthy.append(watchdog.healthy)
        frozen.clear()
        assert manager.count("WATCHDOG=1", 0.5) >= 5
    finally:
        watchdog.stop()
    assert manager.count("WATCHDOG=1", 0.3) == 0
    assert healthy == [True, False]
    assert caplog.text.count("generation has been stalled") == 1


def test_the_watchdog_feeds_at_half_the_managers_limit(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "400000"})
    watchdog = Watchdog(lambda: 0.0, notifier)
    watchdog.start()
    watchdog.start()
    fed = manager.count("WATCHDOG=1", 1.05)
    watchdog.stop()
    assert 4 <= fed <= 6


def test_a_watchdog_is_not_fed_once_generation_has_failed(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    failed = threading.Event()
    notifier = Notifier({"NOTIFY_SOCKET": manager.name})
    watchdog = Watchdog(lambda: 0.0, notifier, failed=failed.is_set, interval_s=0.05, limit_s=5)
    watchdog.start()
    try:
        assert manager.count("WATCHDOG=1", 0.5) >= 5
        healthy = [watchdog.healthy]
        failed.set()
        manager.count("WATCHDOG=1", 0.2)
        assert manager.count("WATCHDOG=1", 0.5) == 0
        healthy.append(watchdog.healthy)
    finally:
        watchdog.stop()
    assert healthy == [True, False]
    assert caplog.text.count("generation has failed") == 1


def test_without_a_watchdog_no_thread_is_started() -> None:
    before = threading.active_count()
    watchdog = Watchdog(lambda: 0.0, Notifier({}))
    watchdog.start()
    assert threading.active_count() == before
    watchdog.stop()


PROGRAM = """
import time
from edgekit.daemon.health import Watchdog
from edgekit.daemon.notify import Notifier
notifier = Notifier()
notifier.extend(60, "loading")
last = time.monotonic()
watchdog = Watchdog(lambda: time.monotonic() - last, notifier, limit_s=0.3)
watchdog.start()
notifier.ready("serving")
for _ in range(10):
    time.sleep(0.05)
    last = time.monotonic()
time.sleep(1.2)  # the loop hangs
notifier.stopping()
"""


def test_a_program_whose_loop_hangs_stops_feeding_the_watchdog(manager: Manager) -> None:
    env = {**os.environ, "NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "200000"}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=env) as program:
        lines: list[tuple[float, str]] = []
        while not lines or lines[-1][1] != "STOPPING=1":
            lines += [(time.monotonic(), line) for line in manager.receive().splitlines()]
    assert program.returncode == 0
    said = [line for _, line in lines]
    assert said[:2] == ["EXTEND_TIMEOUT_USEC=60000000", "STATUS=loading"]
    assert "READY=1" in said
    silent = next(index for index, line in enumerate(said) if line.startswith("STATUS=generation has been stalled"))
    assert "WATCHDOG=1" in said[:silent]
    assert "WATCHDOG=1" not in said[silent:]


def test_a_heartbeat_may_be_as_old_as_the_limit_and_what_stalls_is_named() -> None:
    ages = {"generation": 0.0, "http": 0.0}
    watchdog = Watchdog(lambda: ages["generation"], Notifier({}))
    watchdog.watch("http", lambda: ages["http"])
    # Without a service manager, 30 s.
    for name in ("generation", "http"):
        problems = []
        for ages[name] in (0.0, 30.0, 30.1):
            assert watchdog.healthy is (ages[name] <= 30)
            problems.append(watchdog.problem)
        assert problems == [None, None, f"{name} has been stalled for 30 s"]
        ages[name] = 0.0


def test_the_limit_is_the_service_managers_unless_another_is_given(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "8000000"})
    assert Watchdog(lambda: 8.0, notifier).healthy
    assert not Watchdog(lambda: 8.1, notifier).healthy
    assert Watchdog(lambda: 8.1, notifier, limit_s=9).healthy
    assert Watchdog(lambda: 0.0, notifier, failed=lambda: True).problem == "generation has failed"


def test_no_thread_is_started_where_nothing_listens_or_there_is_no_interval(manager: Manager) -> None:
    before = threading.active_count()
    for notifier, interval_s in ((Notifier({}), 0.1), (Notifier({"NOTIFY_SOCKET": manager.name}), None)):
        watchdog = Watchdog(lambda: 0.0, notifier, interval_s=interval_s)
        watchdog.start()
        assert threading.active_count() == before
        watchdog.stop()
