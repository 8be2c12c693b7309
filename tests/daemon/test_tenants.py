"""A key's prompts are not found by another key: a real daemon, in memory and on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from edgekit.config import AccessConfig, DaemonConfig, GenerationConfig, HttpConfig
from edgekit.daemon.access.key_file import add_key
from edgekit.daemon.app import Daemon
from edgekit.generation.prefix.rates import Rates
from tests.daemon.access.test_key_file import make
from tests.generation.bundles import tiny_bundle

PROMPT = "the quick brown fox jumps over the lazy dog and runs away from it as fast as it can " * 3


@contextmanager
def serving(config: DaemonConfig) -> Iterator[httpx.Client]:
    daemon = Daemon(config)
    daemon.start()
    assert daemon._http is not None
    try:
        with httpx.Client(base_url=daemon._http.url, timeout=60) as http:
            yield http
    finally:
        daemon.stop()


def cached(http: httpx.Client, secret: str) -> int:
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1}
    reply = http.post("/v1/chat/completions", json=body, headers={"api-key": secret})
    assert reply.status_code == 200, reply.text
    usage = reply.json()["usage"]
    tokens = int(usage["prompt_tokens_details"]["cached_tokens"])
    assert int(reply.headers["x-edgekit-cached-tokens"]) == tokens
    return tokens


def test_cached_prompts_are_those_of_the_own_tenant_only_in_memory_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tiny model computes faster than a disk reads.
    monkeypatch.setattr(Rates, "should_restore", lambda *_: True)
    file = tmp_path / "keys.json"
    secrets = {}
    for name, tenant in (("ann", None), ("bob", None), ("eve", "team"), ("max", "team")):
        key, secrets[name] = make(name, tenant=tenant)
        add_key(file, key)
    config = DaemonConfig(
        bundle=tiny_bundle(tmp_path, "onnx"),
        http=HttpConfig(port=0),
        generation=GenerationConfig(threads=1, parallel=2, prefix_folder=tmp_path / "cache"),
        access=AccessConfig(keys_file=file),
    )
    with serving(config) as http:
        assert cached(http, secrets["ann"]) == 0
        assert cached(http, secrets["bob"]) == 0
        assert cached(http, secrets["ann"]) > 0
        assert cached(http, secrets["eve"]) == 0
        assert cached(http, secrets["max"]) > 0
    newcomer, secret = make("zoe")
    add_key(file, newcomer)
    with serving(config) as http:
        assert cached(http, secret) == 0
        # From disk.
        assert cached(http, secrets["bob"]) > 0
        assert cached(http, secrets["max"]) > 0
