"""A real server on loopback, over a small deterministic model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import ollama
import openai
import pytest

from edgekit.config import HttpConfig
from edgekit.daemon.http.door import HttpDoor
from edgekit.daemon.metrics import Metrics
from edgekit.generation.model import ModelInfo, TextModel
from edgekit.generation.scheduler import Scheduler
from tests.daemon.mqtt.scripted import ScriptedScheduler

MODEL = ModelInfo("tiny", 1_700_000_000, 2048, "llama", 134_515_008, "onnx", 141_000_000, ("completion", "tools"))
ASK = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}


@dataclass
class Served:
    """A running door."""

    door: HttpDoor
    scheduler: Scheduler
    metrics: Metrics
    http: httpx.Client

    def openai(self, max_retries: int = 0) -> openai.OpenAI:
        """OpenAI's own client; close it."""
        return openai.OpenAI(base_url=f"{self.door.url}/v1", api_key="none", max_retries=max_retries)


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start doors; all are stopped at the end."""
    running: list[Served] = []

    def start(model: TextModel, *, max_queue: int = 16, max_body_bytes: int = 1_048_576) -> Served:
        scheduler = Scheduler(model, max_queue=max_queue)
        metrics = Metrics()
        metrics.watch(model.info, queue_length=scheduler.queue_length, heartbeat_age=scheduler.seconds_since_heartbeat)
        config = HttpConfig(port=0, max_body_bytes=max_body_bytes)
        door = HttpDoor(config, scheduler, model.info, metrics)
        door.start()
        served = Served(door, scheduler, metrics, httpx.Client(base_url=door.url, timeout=20))
        running.append(served)
        return served

    yield start
    for served in running:
        served.http.close()
        served.scheduler.stop()
        served.door.stop()


@dataclass
class Played:
    """A running door in front of a scheduler that plays a script."""

    door: HttpDoor
    scheduler: ScriptedScheduler
    metrics: Metrics
    http: httpx.Client
    openai: openai.OpenAI
    ollama: ollama.Client


@pytest.fixture
def played() -> Iterator[Played]:
    """A door whose answers a test writes itself: what it says is told apart from what the engine can."""
    scheduler, metrics = ScriptedScheduler(), Metrics()
    door = HttpDoor(HttpConfig(port=0), scheduler, MODEL, metrics)  # type: ignore[arg-type]  # it uses submit alone
    door.start()
    with (
        httpx.Client(base_url=door.url, timeout=20) as http,
        openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as openais,
        ollama.Client(door.url, timeout=20) as ollamas,
    ):
        yield Played(door, scheduler, metrics, http, openais, ollamas)
    scheduler.stop()
    door.stop()
