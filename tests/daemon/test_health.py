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


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


def test_the_watchdog_is_fed_only_while_the_heart_beats(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
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
    assert caplog.text.count("generation has not moved") == 1


def test_the_watchdog_feeds_at_half_the_managers_limit(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "400000"})
    watchdog = Watchdog(lambda: 0.0, notifier)
    watchdog.start()
    watchdog.start()
    fed = manager.count("WATCHDOG=1", 1.05)
    watchdog.stop()
    assert 4 <= fed <= 6


def test_a_watchdog_is_not_fed_once_generation_was_given_up(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
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


def test_where_nobody_watches_no_thread_is_started() -> None:
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
    silent = next(index for index, line in enumerate(said) if line.startswith("STATUS=generation has not moved"))
    assert "WATCHDOG=1" in said[:silent]
    assert "WATCHDOG=1" not in said[silent:]
