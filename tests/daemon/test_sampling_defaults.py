"""A request that states no sampling parameters gets the same ones however it comes in: the model's own, else greedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import edgekit as package
from edgekit.config import HttpConfig, MqttConfig
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.mqtt.service import MqttService
from edgekit.errors import BundleError
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.model import load_model
from tests.broker import Broker
from tests.conftest import edgekit
from tests.daemon.mqtt.conftest import eventually
from tests.generation.bundles import tiny_bundle

QUESTION = "What is the capital of France?"


@contextmanager
def served(bundle: Path, broker: Broker) -> Iterator[str]:
    model = load_model(bundle)
    worker = EngineWorker(model, max_queue=4)
    server = HttpServer(HttpConfig(port=0), worker, model.info, Metrics())
    service = MqttService(MqttConfig(host="127.0.0.1", port=broker.port, device_id="box"), worker, model.info)
    server.start()
    service.start()
    try:
        assert eventually(lambda: service.connected)
        yield server.url
    finally:
        worker.stop()
        service.stop()
        server.stop()


def answers(bundle: Path, broker: Broker, **options: Any) -> dict[str, str]:
    """The answer through every entrance; `options` go to those with a body."""
    found = {"run": edgekit("run", bundle, QUESTION, "--max-tokens", "12").stdout.removesuffix("\n")}
    with package.load(bundle) as model:
        found["python"] = model.chat(QUESTION, max_tokens=12, **options).text
    with served(bundle, broker) as url:
        ask = ("ask", QUESTION, "--max-tokens", "12")
        found["ask"] = edgekit(*ask, "--http", url).stdout.removesuffix("\n")
        at = ("--mqtt", f"127.0.0.1:{broker.port}", "--device", "box")
        found["mqtt"] = edgekit(*ask, *at).stdout.removesuffix("\n")
        messages = [{"role": "user", "content": QUESTION}]
        body = {"messages": messages, "max_tokens": 12, **options}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20).json()
        found["openai"] = reply["choices"][0]["message"]["content"]
        named = {{"repetition_penalty": "repeat_penalty"}.get(name, name): value for name, value in options.items()}
        body = {"model": "tiny", "messages": messages, "stream": False, "options": {"num_predict": 12, **named}}
        found["ollama"] = httpx.post(f"{url}/api/chat", json=body, timeout=20).json()["message"]["content"]
    return found


@pytest.mark.broker
def test_every_entrance_takes_the_models_own_defaults_and_a_request_overrides_them(tmp_path: Path) -> None:
    for name in ("own", "none"):
        (tmp_path / name).mkdir()
    own = tiny_bundle(tmp_path / "own", "onnx", sampling={"temperature": 0.0, "repetition_penalty": 5.0})
    none = tiny_bundle(tmp_path / "none", "onnx")
    with Broker(tmp_path) as broker:
        with_own, plain = answers(own, broker), answers(none, broker)
        overridden = answers(own, broker, repetition_penalty=1.0)
        stated = answers(none, broker, temperature=0)
    assert len(set(with_own.values())) == 1, with_own
    assert len(set(plain.values())) == 1, plain
    assert with_own["run"] != plain["run"]
    for name in ("python", "openai", "ollama"):
        assert overridden[name] == plain["run"]
        assert stated[name] == plain["run"]


def test_defaults_out_of_range_are_the_bundles_fault(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="`temperature` must be between 0 and 2"):
        load_model(tiny_bundle(tmp_path, "onnx", sampling={"temperature": 9.0}))


def test_defaults_that_a_newer_version_added_are_passed_over(tmp_path: Path) -> None:
    model = load_model(tiny_bundle(tmp_path, "onnx", sampling={"top_k": 7, "dry_multiplier": 0.8}))
    assert model.sampling == {"top_k": 7}
    model.close()
