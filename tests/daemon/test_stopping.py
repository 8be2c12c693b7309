"""Signals while the daemon starts, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.bundle.bundle import open_bundle
from edgekit.bundle.manifest import FileEntry
from tests.conftest import edgekit_command
from tests.daemon.manager import Manager
from tests.generation.bundles import tiny_bundle

# Loading as a library does it: minutes in one call, which neither returns to Python nor holds the interpreter's lock.
_SLOW = """
import hashlib
from edgekit.cli import main
from edgekit.daemon import engine_start
engine_start.open_model = lambda *_, **__: hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
main()
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with closing(Manager(str(tmp_path / "notify"))) as manager:
        yield manager


def stop(command: list[str], manager: Manager, status: str, number: int) -> None:
    """Start a daemon, wait for a status, and send a signal, which must end it at once and without complaint."""
    env = {**os.environ, "NOTIFY_SOCKET": manager.name}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        while not any(line.startswith(f"STATUS={status}") for line in manager.receive().splitlines()):
            pass
        process.send_signal(number)
        # Loading would take minutes.
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0, log
        assert "stopped while loading" in log
        assert "Traceback" not in log
        assert manager.count("STOPPING=1", 0.5) == 1
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_loads_ends_the_daemon_at_once(tmp_path: Path, manager: Manager, number: int) -> None:
    bundle = tiny_bundle(tmp_path, "onnx")
    stop([sys.executable, "-c", _SLOW, "serve", str(bundle), "--port", "0"], manager, "loading", number)


def test_a_signal_while_a_large_bundle_is_verified_ends_the_daemon_at_once(tmp_path: Path, manager: Manager) -> None:
    bundle = tiny_bundle(tmp_path, "onnx")
    size = 40 << 30
    with (bundle / "weights.bin").open("wb") as file:
        file.truncate(size)  # takes no space
    manifest = open_bundle(bundle).manifest
    files = (FileEntry("weights.bin", size, "0" * 64), *manifest.files)
    (bundle / "manifest.json").write_text(replace(manifest, files=files).to_json(), encoding="utf-8")
    stop(edgekit_command("serve", bundle, "--port", "0"), manager, "verifying", signal.SIGTERM)


def test_sighup_does_not_end_the_daemon(tmp_path: Path, manager: Manager) -> None:
    command = edgekit_command("serve", tiny_bundle(tmp_path, "onnx"), "--port", "0", "--threads", "1")
    env = {**os.environ, "NOTIFY_SOCKET": manager.name}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        for status in ("STATUS=loading", "READY=1"):
            while not any(line.startswith(status) for line in manager.receive().splitlines()):
                pass
            process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0, log
    finally:
        process.kill()
