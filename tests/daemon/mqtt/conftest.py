"""A broker, a scripted worker and an MQTT service for each test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekit.config import MqttConfig
from edgekit.daemon.access.access import Access
from edgekit.daemon.mqtt.service import MqttService
from edgekit.daemon.readings import Readings
from edgekit.generation.model import ModelInfo
from edgekit.runners import Rejected
from tests.broker import Broker
from tests.daemon.mqtt.scripted import ScriptedWorker

MODEL = ModelInfo(
    "tiny-instruct",
    created=1_700_000_000,
    context_length=2048,
    runner="onnxruntime",
    rejected=(Rejected("cpu", "they are not compiled"),),
)
REQUEST = "edgekit/box/chat/request"
CANCEL = "edgekit/box/chat/cancel"
STATUS = "edgekit/box/status"


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "What is the capital of France?"}], **more}


def eventually(check: Callable[[], bool], within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def outcomes(service: MqttService) -> dict[str, float]:
    """How many requests ended in which way, by the service's metrics."""
    samples = (sample for metric in service.metrics._registry.collect() for sample in metric.samples)
    return {sample.labels["outcome"]: sample.value for sample in samples if sample.name == "edgekit_requests_total"}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def worker() -> Iterator[ScriptedWorker]:
    scripted = ScriptedWorker()
    yield scripted
    scripted.stop()


MakeService = Callable[..., MqttService]


@pytest.fixture
def make_service(broker: Broker, worker: ScriptedWorker) -> Iterator[MakeService]:
    started: list[MqttService] = []

    def make(
        *,
        wait: bool = True,
        state: Path | None = None,
        device: Callable[[], Mapping[str, object]] | None = None,
        access: Access | None = None,
        readings: Readings | None = None,
        **config: Any,
    ) -> MqttService:
        settings = {"host": "127.0.0.1", "port": broker.port, "device_id": "box", **config}
        service = MqttService(
            MqttConfig(**settings), worker, MODEL, state=state, device=device, access=access, readings=readings
        )
        started.append(service)
        service.start()
        assert not wait or eventually(lambda: service.connected), "the service did not connect"
        return service

    yield make
    for service in started:
        service.stop()


@pytest.fixture
def service(make_service: MakeService) -> MqttService:
    return make_service()
