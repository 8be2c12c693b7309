"""A real daemon and a real broker, each in its own process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

__all__ = ["Broker", "Daemon", "free_port"]

_START_S = 120.0
_STOP_S = 60.0


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """A private mosquitto."""

    def __init__(self, program: str, folder: Path) -> None:
        self.port = free_port()
        lines = [f"listener {self.port} 127.0.0.1", "allow_anonymous true", "set_tcp_nodelay true", "log_type error"]
        # Many answers may be in flight to the load's one connection.
        lines.append("max_queued_messages 0")
        if os.geteuid() == 0:
            lines.append("user root")
        config = folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._process = subprocess.Popen([program, "-c", str(config)])
        until = time.monotonic() + 10
        while not self._answers():
            assert self._process.poll() is None, "mosquitto ended at once"
            assert time.monotonic() < until, "mosquitto did not open its port"
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    @staticmethod
    def program() -> str | None:
        """Return the path of mosquitto, if it is installed."""
        places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"])
        return shutil.which("mosquitto", path=places)

    def stop(self) -> None:
        """Stop the broker."""
        self._process.terminate()
        self._process.wait(timeout=10)


class Daemon:
    """`edgekit serve` on the bundle, ready to answer.

    Args:
        bundle: The bundle to serve.
        config: The configuration file.
        folder: Folder for the log.
        broker: Port of a broker on loopback; None disables the MQTT API.
        options: Additional flags.
    """

    device = "soak"

    def __init__(self, bundle: Path, config: Path, folder: Path, *, broker: int | None, options: list[str]) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "edgekit", "serve", str(bundle)]
        command += ["--config", str(config), "--port", self.url.rpartition(":")[2], *options]
        if broker is not None:
            command += ["--mqtt", f"127.0.0.1:{broker}", "--device", self.device]
        self._log = folder / "daemon.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wait()
        except BaseException:
            self._process.kill()
            raise

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """The log so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def stop(self) -> int:
        """Stop it as a service manager would; return the exit code."""
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _wait(self) -> None:
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            if not self.alive:
                sys.exit(f"the daemon ended with {self._process.returncode}:\n{self.log}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=1, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        sys.exit(f"the daemon was not ready after {_START_S:g} s:\n{self.log}")
