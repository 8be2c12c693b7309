"""The daemon as it is wired, in this process: a real bundle behind the HTTP door."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgekit.config import DaemonConfig, GenerationConfig, HttpConfig
from edgekit.daemon.app import Daemon
from edgekit.generation import opening
from edgekit.generation.model import TextModel
from tests.daemon.mqtt.conftest import eventually
from tests.generation.bundles import tiny_bundle

FORM = {"type": "choice", "choice": ["yes", "no"]}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    config = DaemonConfig(
        bundle=tiny_bundle(tmp_path, "onnx"), http=HttpConfig(port=0), generation=GenerationConfig(threads=1)
    )
    made = Daemon(config)
    yield made
    made.stop()


def _model(daemon: Daemon) -> TextModel:
    assert daemon._scheduler is not None
    return daemon._scheduler._model


def _ask(daemon: Daemon) -> str:
    assert daemon._http is not None
    body = {"messages": [{"role": "user", "content": "Hello"}], "response_format": FORM}
    reply = httpx.post(f"{daemon._http.url}/v1/chat/completions", json=body, timeout=30)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def test_what_grammars_need_is_there_before_anybody_asks_for_one(daemon: Daemon) -> None:
    daemon.start()
    grammars = _model(daemon).grammars
    assert eventually(lambda: grammars.prepared)
    vocabulary = grammars._prepared()[0]
    assert _ask(daemon) in FORM["choice"]
    assert grammars._prepared()[0] is vocabulary


def test_where_the_kv_cache_needs_all_memory_it_is_built_for_who_asks(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the machine had so little left; what it is held against is real.
    monkeypatch.setattr(opening, "available_bytes", lambda: 100_000)
    daemon.start()
    grammars = _model(daemon).grammars
    assert not eventually(lambda: grammars.prepared, 1.0)
    assert _ask(daemon) in FORM["choice"]
    assert grammars.prepared
