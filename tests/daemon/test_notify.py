from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.daemon.health import Watchdog
from edgekit.daemon.notify import Notifier


class Manager:
    """The other end of NOTIFY_SOCKET: a real datagram socket."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self.socket.settimeout(10)

    def receive(self) -> str:
        return self.socket.recv(4096).decode()

    def count(self, line: str, seconds: float) -> int:
        """How often `line` comes within `seconds`."""
        found, end = 0, time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                found += line in self.receive().splitlines()
            except TimeoutError:
                break
        self.socket.settimeout(10)
        return found


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    name = f"@edgekit-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    made = Manager(name)
    yield made
    made.socket.close()


def test_every_state_arrives_as_the_protocol_words_it(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.name})
    notifier.extend(90, "building the engine")
    notifier.ready("serving\nMAINPID=1")
    notifier.status("2 requests")
    notifier.alive()
    notifier.stopping()
    assert [manager.receive() for _ in range(5)] == [
        "EXTEND_TIMEOUT_USEC=90000000\nSTATUS=building the engine",
        "READY=1\nSTATUS=serving MAINPID=1",
        "STATUS=2 requests",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


@pytest.mark.skipif(shutil.which("systemd-notify") is None, reason="no systemd-notify here")
def test_systemd_notifys_own_words_and_ours_are_the_same(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    env = {**os.environ, "NOTIFY_SOCKET": manager.name}
    subprocess.run(["systemd-notify", "--no-block", "--ready", "--status=serving"], env=env, check=True)
    theirs = set(manager.receive().split("\n")) - {""}
    Notifier(env).ready("serving")
    ours = set(manager.receive().split("\n"))
    manager.socket.close()
    assert {line for line in theirs if not line.startswith("MAINPID=")} == ours


def test_without_a_service_manager_nothing_happens() -> None:
    for env in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        notifier = Notifier(env)
        notifier.ready()
        assert not notifier.listening
        assert not notifier.send("READY=1")


def test_a_manager_that_went_away_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).send("READY=1")
    assert "was not told READY=1" in caplog.text


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdogs_limit_is_the_managers_for_this_process(env: dict[str, str], expected: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/x", **env}).watchdog_s == expected
    assert Notifier(env).watchdog_s is None


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


def test_a_program_whose_loop_hangs_stops_feeding_the_watchdog(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    env = {**os.environ, "NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "200000"}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=env) as program:
        lines: list[tuple[float, str]] = []
        while not lines or lines[-1][1] != "STOPPING=1":
            lines += [(time.monotonic(), line) for line in manager.receive().splitlines()]
    manager.socket.close()
    assert program.returncode == 0
    said = [line for _, line in lines]
    assert said[:2] == ["EXTEND_TIMEOUT_USEC=60000000", "STATUS=loading"]
    assert "READY=1" in said
    silent = next(index for index, line in enumerate(said) if line.startswith("STATUS=generation has not moved"))
    assert "WATCHDOG=1" in said[:silent]
    assert "WATCHDOG=1" not in said[silent:]
