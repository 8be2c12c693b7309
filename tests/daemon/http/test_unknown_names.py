"""Bodies with many unknown names, at every endpoint: few are compared with known ones, and none is kept."""

from __future__ import annotations

import difflib
import gc
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from edgekit import errors
from edgekit.config import HttpConfig
from edgekit.daemon.api.ignored import MAX_COMPARED
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from tests.scripted import scripted_model, serving

_USER = {"role": "user", "content": "Hi"}
_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
_BODIES: dict[str, dict[str, Any]] = {
    "ChatBody": {"messages": [_USER], "tools": [_TOOL], "max_tokens": 1},
    "CompletionBody": {"prompt": "a", "max_tokens": 1, "stream_options": {}},
    "ResponseBody": {"input": [_USER], "max_output_tokens": 16},
    "MessagesBody": {"model": "scripted", "messages": [_USER], "max_tokens": 1},
    "OllamaChatBody": {"model": "scripted", "messages": [_USER], "stream": False, "options": {"num_predict": 1}},
    "OllamaGenerateBody": {"model": "scripted", "prompt": "a", "stream": False, "options": {"num_predict": 1}},
    "LlamaCompletionBody": {"prompt": "a", "n_predict": 1},
    "InfillBody": {"input_prefix": "a", "n_predict": 1},
    "TokenizeBody": {"content": "a"},
    "TokensBody": {"tokens": [1]},
    "ModelName": {"model": "scripted"},
}
_OPERATIONS = {
    one.path: one.body
    for one in HttpServer(HttpConfig(), None, None, Metrics())._operations()
    if one.body is not None and not one.refused
}
_LARGE = "x" * 20_000
_MARK = "kept_"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with (
        serving(scripted_model("Paris.", context_length=256)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def _with_names(value: Any, names: list[str]) -> Any:
    """The value with the names in each of its objects but the schemas."""
    if isinstance(value, list):
        return [_with_names(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    inner = {name: item if name == "parameters" else _with_names(item, names) for name, item in value.items()}
    return inner | dict.fromkeys(names, 1)


def _anagrams(count: int) -> list[str]:
    chance = random.Random(1)  # noqa: S311
    bases = ("repetition_penalty", "messages", "content", "function", "top_logprobs", "model", "options", "input")
    made = []
    for number in range(count):
        base = bases[number % len(bases)]
        made.append(f"{base[0]}{''.join(chance.sample(base[1:], len(base) - 1))}{number}")
    return made


@pytest.mark.parametrize("path", _OPERATIONS)
def test_few_names_of_a_request_are_compared(http: httpx.Client, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = _with_names(_BODIES[_OPERATIONS[path] or ""], _anagrams(800))
    compared = []

    def counted(word: str, *args: Any, **kwargs: Any) -> list[str]:
        compared.append(word)
        return difflib.get_close_matches(word, *args, **kwargs)

    monkeypatch.setattr(errors, "get_close_matches", counted)
    reply = http.post(path, json=body)
    assert reply.status_code in (200, 400), reply.text
    # A refusal compares the one name that it is about once more.
    assert len(compared) <= MAX_COMPARED + 1
    assert compared or _OPERATIONS[path] == "ModelName"


def _kept() -> set[str]:
    """The names with the mark that anything in this process still has."""
    found: set[str] = set()
    for one in gc.get_objects():
        if type(one) in (dict, list, tuple, set, frozenset):
            items = [*one, *one.values()] if type(one) is dict else one
            found.update(item for item in items if type(item) is str and item.startswith(_MARK) and item != _MARK)
    return found


def test_no_name_is_kept_after_its_request(http: httpx.Client) -> None:
    for path, body in _OPERATIONS.items():
        for initial in ("", _LARGE):
            sent = json.dumps(_with_names(_BODIES[body or ""], [f"{_MARK}{initial}{path}", f"r{_MARK}"]))
            reply = http.post(path, content=sent)
            assert reply.status_code in (200, 400), reply.text
            del sent
    for _ in range(20):
        # Threads of the server may hold the last request until the next one.
        http.post("/tokenize", json={"content": "a"}).raise_for_status()
        gc.collect()
        if not _kept():
            break
    assert {name[:60] for name in _kept()} == set()
