"""A broker, a scripted scheduler and a door of each test's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.config import MqttConfig
from edgekit.daemon.mqtt.door import MqttDoor
from edgekit.generation.model import ModelInfo
from tests.broker import Broker
from tests.daemon.mqtt.scripted import ScriptedScheduler

MODEL = ModelInfo("tiny-instruct", created=1_700_000_000, context_length=2048)
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


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def scheduler() -> Iterator[ScriptedScheduler]:
    scripted = ScriptedScheduler()
    yield scripted
    scripted.stop()


MakeDoor = Callable[..., MqttDoor]


@pytest.fixture
def make_door(broker: Broker, scheduler: ScriptedScheduler) -> Iterator[MakeDoor]:
    made: list[MqttDoor] = []

    def make(*, wait: bool = True, **config: Any) -> MqttDoor:
        settings = {"host": "127.0.0.1", "port": broker.port, "device_id": "box", **config}
        door = MqttDoor(MqttConfig(**settings), scheduler, MODEL)
        made.append(door)
        door.start()
        assert not wait or eventually(lambda: door.connected), "the door did not connect"
        return door

    yield make
    for door in made:
        door.stop()


@pytest.fixture
def door(make_door: MakeDoor) -> MqttDoor:
    return make_door()
