from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.daemon.notify import Notifier
from tests.daemon.manager import Manager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    name = f"@edgekit-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    made = Manager(name)
    yield made
    made.close()


def test_every_state_is_sent_as_the_protocol_spells_it(manager: Manager) -> None:
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
def test_systemd_notify_sends_the_same_lines(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    env = {**os.environ, "NOTIFY_SOCKET": manager.name}
    subprocess.run(["systemd-notify", "--no-block", "--ready", "--status=serving"], env=env, check=True)
    theirs = set(manager.receive().split("\n")) - {""}
    Notifier(env).ready("serving")
    ours = set(manager.receive().split("\n"))
    manager.close()
    assert {line for line in theirs if not line.startswith("MAINPID=")} == ours


def test_without_a_service_manager_nothing_happens() -> None:
    for env in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        notifier = Notifier(env)
        notifier.ready()
        assert not notifier.listening
        assert not notifier.send("READY=1")


def test_a_service_manager_that_went_away_is_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).send("READY=1")
    assert "cannot notify the service manager of READY=1" in caplog.text


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
def test_the_watchdog_timeout_is_the_one_set_for_this_process(env: dict[str, str], expected: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/x", **env}).watchdog_s == expected
    assert Notifier(env).watchdog_s is None
