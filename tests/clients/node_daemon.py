"""A daemon that needs a key, in front of a scripted model that calls tools, thinks and obeys schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.config import AccessConfig
from edgekit.daemon.access.access import Access
from edgekit.daemon.access.key_file import add_key
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from tests.daemon.access.test_key_file import make
from tests.scripted import scripted_model, serving, tool_call

__all__ = ["outcomes", "requiring_key"]

_LONG = 12_000


def _script(prompt: str) -> str:
    last = prompt.rpartition("<|im_start|>user\n")[2]
    if "Forever" in last:
        return "x" * _LONG
    if "JSON" in last:
        return '{"city":"Paris"}'
    if "Choose" in last:
        return '{"result":"yes"}'
    if "think" in last:
        return "<think>Easy.</think>\n\nParis."
    if "Call it" in last:
        return tool_call("weather", '{"city": "Oslo"}')
    if "Weather" in last and "<|im_start|>tool" not in prompt:
        return "\n".join(tool_call("weather", json.dumps({"city": city})) for city in ("Paris", "Rome"))
    return "Sunny in both." if "Weather" in last else "Paris."


@contextmanager
def requiring_key(folder: Path) -> Iterator[tuple[HttpServer, str, Metrics]]:
    """Serve; yields the server, a key of it, and its metrics."""
    file = folder / "keys.json"
    key, secret = make("node", scopes=("inference", "metrics"))
    add_key(file, key)
    metrics = Metrics()
    access = Access(AccessConfig(keys_file=file, audit="off"), metrics)
    access.start()
    with serving(scripted_model(_script), metrics=metrics, access=access) as server:
        yield server, secret, metrics


def outcomes(metrics: Metrics) -> dict[str, float]:
    """How many requests ended in which way."""
    samples = (sample for metric in metrics._registry.collect() for sample in metric.samples)
    return {sample.labels["outcome"]: sample.value for sample in samples if sample.name == "edgekit_requests_total"}
