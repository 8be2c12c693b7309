"""A server that needs keys, in front of a worker that plays a script."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from edgekit.config import AccessConfig, HttpConfig
from edgekit.daemon.access.access import Access
from edgekit.daemon.access.key_file import add_key
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.generation.engine.engine import EngineStats
from tests.daemon.access.test_key_file import make
from tests.daemon.http.conftest import MODEL
from tests.daemon.mqtt.scripted import ScriptedWorker
from tests.generation.tiny import echo_model

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}


class _Worker(ScriptedWorker):
    failed = False
    accepting = True

    def __init__(self) -> None:
        super().__init__()
        self.model = echo_model()

    def stats(self) -> EngineStats:
        return EngineStats(0, 0, 0, 0, 0, 0, None)


@dataclass
class Guarded:
    """A running server and its keys file."""

    server: HttpServer
    access: Access
    worker: ScriptedWorker
    http: httpx.Client
    file: Path

    def add(self, name: str, **limits: Any) -> str:
        """Add a key; returns the secret."""
        key, secret = make(name, **limits)
        add_key(self.file, key)
        return secret

    def ask(self, secret: str, path: str = CHAT, body: Any = ASK, **headers: str) -> httpx.Response:
        return self.http.post(path, json=body, headers={"Authorization": f"Bearer {secret}", **headers})

    def get(self, secret: str, path: str) -> httpx.Response:
        return self.http.get(path, headers={"Authorization": f"Bearer {secret}"})


@contextmanager
def guarded(
    folder: Path, *, keys: bool = True, access: dict[str, Any] | None = None, **config: Any
) -> Iterator[Guarded]:
    """Serve; with `keys` there is one named `first`, so that keys are required."""
    file = folder / "keys.json"
    if keys:
        add_key(file, make("first")[0])
    worker, metrics = _Worker(), Metrics()
    metrics.watch(MODEL, queue_length=lambda: 0, heartbeat_age=lambda: 0.0)
    made = Access(AccessConfig(keys_file=file, **(access or {})), metrics)
    made.start()
    server = HttpServer(HttpConfig(port=0, **config), worker, MODEL, metrics, access=made)  # type: ignore[arg-type]
    server.start()
    try:
        with httpx.Client(base_url=server.url, timeout=20) as http:
            yield Guarded(server, made, worker, http, file)
    finally:
        worker.stop()
        server.stop()
        made.stop()
