"""A private, real mosquitto on loopback, and a caller that speaks to it as a stranger would, through paho."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

__all__ = ["Broker", "Caller", "free_port", "tool"]

_PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"])


def tool(name: str) -> str:
    """Path of a mosquitto program; a missing one fails the test, for what is skipped is soon not tested at all."""
    found = shutil.which(name, path=_PLACES)
    if found is None:
        pytest.fail(
            f"`{name}` is not installed, and the MQTT tests run against the real one: "
            "apt install mosquitto mosquitto-clients (or: brew install mosquitto), or deselect with -m 'not broker'",
            pytrace=False,
        )
    return found


def free_port() -> int:
    """A free port on loopback for a server that starts later, or again.

    It is below the ports that systems give to clients, which would take one of those in the meantime, and in a range of
    its own for each of pytest's processes.
    """
    while True:
        port = next(_ports)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _candidates() -> Iterator[int]:
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
    ports = range(20_000 + 1000 * process, 21_000 + 1000 * process)
    start = os.getpid() % len(ports)
    yield from itertools.cycle((*ports[start:], *ports[:start]))


_ports = _candidates()


class Broker:
    """A mosquitto of one test; `with Broker(tmp_path) as broker`. It keeps its port over a restart."""

    def __init__(
        self, folder: Path, *, config: Sequence[str] = ("allow_anonymous true",), port: int | None = None
    ) -> None:
        self.port = port or free_port()
        self._program = tool("mosquitto")
        self._folder = folder
        lines = [f"listener {self.port} 127.0.0.1", "log_dest stderr", "set_tcp_nodelay true", *config]
        if os.geteuid() == 0:
            # Otherwise it becomes the user `mosquitto`, who may not read the test's folder.
            lines.append("user root")
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", str(self._config)], stderr=log, stdout=log)
        deadline = time.monotonic() + 10
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"mosquitto did not open its port:\n{self.log()}"
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(timeout=10)

    def log(self) -> str:
        return (self._folder / "mosquitto.log").read_text(errors="replace")

    def __enter__(self) -> Broker:  # noqa: PYI034 - typing.Self needs Python 3.11
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Caller:
    """An MQTT client of a test: collects what comes on the topics it listens to, in order."""

    def __init__(self, port: int, *listen: str, version: int = 5, qos: int = 1, user: str | None = None) -> None:
        protocol = paho.MQTTv5 if version == 5 else paho.MQTTv311
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=protocol)
        self._inbox: queue.SimpleQueue[paho.MQTTMessage] = queue.SimpleQueue()
        granted: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._client.on_message = lambda _client, _data, message: self._inbox.put(message)
        self._client.on_subscribe = lambda *_: granted.put(None)
        if user is not None:
            self._client.username_pw_set(user, user)
        self._client.connect("127.0.0.1", port)
        sock: Any = self._client.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client.loop_start()
        for topic in listen:
            self._client.subscribe(topic, qos)
            granted.get(timeout=10)

    def publish(self, topic: str, body: Any, *, retain: bool = False, **properties: Any) -> None:
        """Publish at QoS 1; `body` may be bytes, or anything that JSON can say."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = None
        if properties:
            given = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            for name, value in properties.items():
                setattr(given, name, value)
        self._client.publish(topic, payload, qos=1, retain=retain, properties=given).wait_for_publish(timeout=10)

    def message(self, timeout_s: float = 10.0) -> paho.MQTTMessage:
        try:
            return self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            pytest.fail(f"no message came within {timeout_s} s")

    def next(self, timeout_s: float = 10.0) -> Any:
        return json.loads(self.message(timeout_s).payload)

    def until(self, wanted: str, timeout_s: float = 10.0) -> list[Any]:
        """Messages up to the first of type `wanted`, that one included."""
        seen = [self.next(timeout_s)]
        while seen[-1]["type"] != wanted:
            seen.append(self.next(timeout_s))
        return seen

    @staticmethod
    def property(message: paho.MQTTMessage, name: str) -> Any:
        """An MQTT 5 property of a message; None if it has none of this name."""
        return getattr(message.properties, name, None)

    def silent(self, for_s: float = 0.4) -> bool:
        try:
            self._inbox.get(timeout=for_s)
        except queue.Empty:
            return True
        return False

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> Caller:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
