"""A start that waits for what may mend itself: an address, a bundle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edgekit.daemon.notify import Notifier
from edgekit.daemon.retry import LIMIT_S, StoppedError, retry
from edgekit.errors import ConfigError, EdgekitError
from tests.broker import free_port
from tests.conftest import edgekit_command
from tests.daemon.manager import Manager
from tests.generation.bundles import tiny_bundle

SYSTEMD = Notifier({})


class Failing:
    """Fails a number of times."""

    def __init__(self, times: int, error: EdgekitError) -> None:
        self.left, self._error = times, error

    def __call__(self) -> str:
        if self.left:
            self.left -= 1
            raise self._error
        return "done"


UNAVAILABLE = EdgekitError("cannot listen", code="address_unavailable")


def test_what_may_mend_itself_is_repeated_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert retry(Failing(5, UNAVAILABLE), threading.Event(), SYSTEMD, limit_s=60, pause_s=0.01) == "done"
    assert [record.getMessage() for record in caplog.records] == [
        "cannot listen; trying again for 60 s",
        "this works now",
    ]


@pytest.mark.parametrize(("error", "limit_s"), [(ConfigError("wrong"), 60.0), (UNAVAILABLE, 0.0)])
def test_any_other_error_and_one_in_a_terminal_ends_the_start_at_once(error: EdgekitError, limit_s: float) -> None:
    attempt = Failing(2, error)
    with pytest.raises(EdgekitError):
        retry(attempt, threading.Event(), SYSTEMD, limit_s=limit_s, pause_s=0.01)
    assert attempt.left == 1


def test_the_wait_ends_with_the_error_and_at_a_stop() -> None:
    with pytest.raises(EdgekitError, match="cannot listen"):
        retry(Failing(1000, UNAVAILABLE), threading.Event(), SYSTEMD, limit_s=0.1, pause_s=0.02)
    stopping = threading.Event()
    threading.Timer(0.1, stopping.set).start()
    with pytest.raises(StoppedError):
        retry(Failing(1000, UNAVAILABLE), stopping, SYSTEMD, limit_s=60, pause_s=30)


def test_failed_starts_never_use_up_the_units_start_limit() -> None:
    unit = dict(
        line.split("=", 1)
        for line in (Path(__file__).parents[2] / "systemd/edgekit.service").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    waited = int(unit["StartLimitBurst"]) * (LIMIT_S + int(unit["RestartSec"]))
    assert waited > int(unit["StartLimitIntervalSec"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"), "onnx")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with closing(Manager(str(tmp_path / "notify"))) as manager:
        yield manager


def started(manager: Manager, folder: Path, port: int) -> subprocess.Popen[str]:
    command = edgekit_command("serve", folder, "--port", str(port), "--threads", "1")
    return subprocess.Popen(
        command, env={**os.environ, "NOTIFY_SOCKET": manager.name}, stderr=subprocess.PIPE, text=True
    )


def wait_for(manager: Manager, found: Callable[[str], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not any(found(line) for line in manager.receive().splitlines()):
        assert time.monotonic() < end


def test_under_a_service_manager_a_port_and_a_bundle_are_waited_for(
    bundle: Path, manager: Manager, tmp_path: Path
) -> None:
    other = socket.create_server(("127.0.0.1", free_port()))
    process = started(manager, tmp_path / "mounted-later", other.getsockname()[1])
    try:
        wait_for(manager, lambda line: line.startswith("STATUS=waiting: cannot listen"))
        other.close()
        wait_for(manager, lambda line: line.startswith("STATUS=waiting: there is no bundle"))
        (tmp_path / "mounted-later").symlink_to(bundle)
        wait_for(manager, lambda line: line == "READY=1")
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log


def test_a_daemon_that_waits_stops_at_once(manager: Manager, tmp_path: Path) -> None:
    process = started(manager, tmp_path / "none", free_port())
    wait_for(manager, lambda line: line.startswith("STATUS=waiting: there is no bundle"))
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert process.returncode == 0, log
    assert "Traceback" not in log


def test_without_a_service_manager_the_error_comes_at_once(tmp_path: Path) -> None:
    command = edgekit_command("serve", tmp_path / "none", "--port", "0")
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "error: there is no bundle at" in done.stderr
