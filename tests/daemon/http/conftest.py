"""A real server on loopback, over a small deterministic model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import ollama
import openai
import pytest

from edgekit.config import HttpConfig
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.model import ModelInfo, TextModel
from tests.daemon.mqtt.scripted import ScriptedWorker

MODEL = ModelInfo("tiny", 1_700_000_000, 2048, "llama", 134_515_008, "onnx", 141_000_000, ("completion", "tools"))
ASK = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}


@dataclass
class Served:
    """A running server."""

    server: HttpServer
    worker: EngineWorker
    metrics: Metrics
    http: httpx.Client

    def openai(self, max_retries: int = 0) -> openai.OpenAI:
        """OpenAI's own client; close it."""
        return openai.OpenAI(base_url=f"{self.server.url}/v1", api_key="none", max_retries=max_retries)


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers; all are stopped at the end."""
    running: list[Served] = []

    def start(model: TextModel, *, max_queue: int = 16, max_body_bytes: int = 1_048_576) -> Served:
        worker = EngineWorker(model, max_queue=max_queue)
        metrics = Metrics()
        metrics.watch(model.info, queue_length=worker.queue_length, heartbeat_age=worker.seconds_since_heartbeat)
        config = HttpConfig(port=0, max_body_bytes=max_body_bytes)
        server = HttpServer(config, worker, model.info, metrics)
        server.start()
        served = Served(server, worker, metrics, httpx.Client(base_url=server.url, timeout=20))
        running.append(served)
        return served

    yield start
    for served in running:
        served.http.close()
        served.worker.stop()
        served.server.stop()


@dataclass
class Played:
    """A running server in front of a worker that plays a script."""

    server: HttpServer
    worker: ScriptedWorker
    metrics: Metrics
    http: httpx.Client
    openai: openai.OpenAI
    ollama: ollama.Client


@pytest.fixture
def played() -> Iterator[Played]:
    """A server with scripted answers, to test its replies without the engine."""
    worker, metrics = ScriptedWorker(), Metrics()
    server = HttpServer(HttpConfig(port=0), worker, MODEL, metrics)  # type: ignore[arg-type]  # it only uses submit
    server.start()
    with (
        httpx.Client(base_url=server.url, timeout=20) as http,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as openais,
        ollama.Client(server.url, timeout=20) as ollamas,
    ):
        yield Played(server, worker, metrics, http, openais, ollamas)
    worker.stop()
    server.stop()
