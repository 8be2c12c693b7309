"""A daemon's transports in front of a worker that plays a script: fixtures for the tests of clients.

A test module takes them by `pytest_plugins = ("tests.serving",)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.config import HttpConfig, MqttConfig
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.mqtt.service import MqttService
from tests.broker import Broker
from tests.daemon.mqtt.conftest import MODEL, eventually
from tests.daemon.mqtt.scripted import ScriptedWorker


@pytest.fixture
def worker() -> Iterator[ScriptedWorker]:
    scripted = ScriptedWorker()
    yield scripted
    scripted.stop()


@pytest.fixture
def url(worker: ScriptedWorker) -> Iterator[str]:
    server = HttpServer(HttpConfig(port=0), worker, MODEL, Metrics())  # type: ignore[arg-type]  # it only uses submit
    server.start()
    yield server.url
    for playing in worker.played:
        playing.cancel()
    server.stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def service(broker: Broker, worker: ScriptedWorker) -> Iterator[MqttService]:
    running = MqttService(MqttConfig(host="127.0.0.1", port=broker.port, device_id="box"), worker, MODEL)
    running.start()
    assert eventually(lambda: running.connected)
    yield running
    running.stop()
