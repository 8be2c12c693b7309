from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from edgekit.config import HttpConfig
from edgekit.daemon.http.ollama_models import rfc3339, show
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.generation.model import ModelInfo
from tests.daemon.http.conftest import MODEL, Played


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (0, ""),
        (999_999, "999999"),
        (10**6, "1.0M"),
        (134_515_008, "134.5M"),
        (10**9, "1.0B"),
        (7_615_616_512, "7.6B"),
    ],
)
def test_the_number_of_weights_is_shown_as_ollama_shows_it(parameters: int, text: str) -> None:
    shown = show(ModelInfo("tiny", 0, 2048, "qwen2", parameters))
    assert shown["details"]["parameter_size"] == text
    assert shown["model_info"].get("general.parameter_count", 0) == parameters


def test_a_model_is_described_with_what_is_known_of_it() -> None:
    known = show(ModelInfo("tiny", 0, 2048, "qwen2", capabilities=("completion", "tools")))
    assert known["model_info"] == {
        "general.architecture": "qwen2",
        "general.basename": "tiny",
        "qwen2.context_length": 2048,
    }
    assert (known["details"]["family"], known["details"]["families"]) == ("qwen2", ["qwen2"])
    assert known["capabilities"] == ["completion", "tools"]
    unknown = show(ModelInfo("tiny", 0, 2048))
    assert unknown["model_info"] == {
        "general.architecture": "unknown",
        "general.basename": "tiny",
        "unknown.context_length": 2048,
    }
    assert (unknown["details"]["family"], unknown["details"]["families"]) == ("", [])


def test_everything_that_is_known_of_a_model_is_shown() -> None:
    info = ModelInfo(
        *("qwen-coder", 0, 4096, "qwen2", 1_543_714_304, "onnx", 1_000_000),
        capabilities=("completion", "insert", "tools"),
        licence="Apache-2.0",
        bits=4,
        template="{{ messages }}",
        fill_template="<|fim_prefix|>{{ .Prompt }}<|fim_suffix|>{{ .Suffix }}<|fim_middle|>",
        sampling={"temperature": 0.7, "repetition_penalty": 1.1},
        dimensions={"block_count": 28, "embedding_length": 1536},
    )
    shown = show(info)
    assert (shown["license"], shown["details"]["quantization_level"]) == ("Apache-2.0", "INT4")
    assert shown["model_info"]["qwen2.block_count"] == 28
    lines = [line.split() for line in shown["parameters"].split("\n")]
    assert lines == [["num_ctx", "4096"], ["temperature", "0.7"], ["repeat_penalty", "1.1"]]
    assert shown["template"] == (
        "{{- if .Suffix }}<|fim_prefix|>{{ .Prompt }}<|fim_suffix|>{{ .Suffix }}<|fim_middle|>{{- else }}"
        "{{- /* Jinja, for .Messages and .Tools */ -}}\n{{ messages }}{{- end }}"
    )
    chats_only = show(ModelInfo("tiny", 0, 2048, template="{{ messages }}"))["template"]
    assert chats_only == "{{- /* Jinja, for .Messages */ -}}\n{{ messages }}"
    assert show(ModelInfo("tiny", 0, 2048))["template"] == "{{ .Prompt }}"


def test_a_model_on_an_accelerator_is_in_its_memory(played: Played) -> None:
    played.server._info = replace(MODEL, runner="tensorrt")
    (running,) = played.http.get("/api/ps").json()["models"]
    assert running["size_vram"] == running["size"] == MODEL.size_bytes


def test_times_are_in_utc() -> None:
    assert rfc3339(1_700_000_000) == "2023-11-14T22:13:20Z"


def test_the_model_is_listed_once_it_is_loaded(played: Played) -> None:
    loading = HttpServer(HttpConfig(port=0), None, None, Metrics())
    loading.start()
    try:
        with httpx.Client(base_url=loading.url, timeout=20) as http:
            for path in ("/v1/models", "/v1/models/tiny", "/api/tags"):
                # An empty list would be a daemon without models, which no client asks again.
                early = http.get(path)
                assert (early.status_code, early.headers["Retry-After"]) == (503, "5")
            assert http.get("/api/ps").json() == {"models": []}
    finally:
        loading.stop()
    (listed,) = played.http.get("/v1/models").json()["data"]
    assert (listed["id"], listed["created"], listed["context_length"]) == ("tiny", MODEL.created, 2048)
    assert played.http.get("/v1/models/tiny").json() == listed
    (tagged,) = played.http.get("/api/tags").json()["models"]
    assert (tagged["name"], tagged["size"], tagged["modified_at"]) == (
        "tiny:latest",
        141_000_000,
        "2023-11-14T22:13:20Z",
    )
    (running,) = played.http.get("/api/ps").json()["models"]
    assert (running["name"], running["size_vram"], running["context_length"]) == ("tiny:latest", 0, 2048)
    assert "modified_at" not in running
    assert running["expires_at"] == "9999-12-31T23:59:59Z"


def test_anthropics_clients_get_the_model_in_anthropics_form(played: Played) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    listed = played.http.get("/v1/models", headers=headers).json()
    (model,) = listed.pop("data")
    assert listed == {"has_more": False, "first_id": "tiny", "last_id": "tiny"}
    assert model == {
        "type": "model",
        "id": "tiny",
        "display_name": "tiny",
        "created_at": "2023-11-14T22:13:20Z",
        "lifecycle": "active",
        "max_input_tokens": 2048,
        "max_tokens": 2048,
    }
    assert played.http.get("/v1/models/tiny", headers=headers).json() == model


def test_an_alias_is_listed_with_the_models_own_name_and_answers_in_every_dialect(played: Played) -> None:
    played.server._info = replace(MODEL, aliases=("gpt-4o",))
    http, messages = played.http, [{"role": "user", "content": "Hi"}]
    listed = http.get("/v1/models").json()["data"]
    assert [(one["id"], one["root"]) for one in listed] == [("tiny", "tiny"), ("gpt-4o", "tiny")]
    assert http.get("/v1/models/gpt-4o").json() == http.get("/v1/models/gpt-4o:latest").json() == listed[1]
    tags = [(one["name"], one["details"]["parent_model"]) for one in http.get("/api/tags").json()["models"]]
    assert tags == [("tiny:latest", ""), ("gpt-4o:latest", "tiny:latest")]
    assert http.post("/api/show", json={"model": "gpt-4o"}).json()["details"]["parent_model"] == "tiny:latest"
    assert [one["id"] for one in http.get("/api/v0/models").json()["data"]] == ["tiny", "gpt-4o"]
    answered = {}
    requests: dict[str, dict[str, object]] = {
        "/v1/chat/completions": {"messages": messages},
        "/v1/completions": {"prompt": "Hi"},
        "/v1/responses": {"input": "Hi"},
        "/v1/messages": {"messages": messages, "max_tokens": 9},
        "/api/chat": {"messages": messages, "stream": False},
        "/api/generate": {"prompt": "Hi", "stream": False},
        "/completion": {"prompt": "Hi"},
    }
    for path, fields in requests.items():
        reply = http.post(path, json={"model": "gpt-4o", **fields})
        assert reply.status_code == 200, (path, reply.text)
        answered[path] = reply.json()["model"]
    echoing = {"/v1/messages", "/api/chat", "/api/generate"}
    assert answered == {path: "gpt-4o" if path in echoing else "tiny" for path in answered}
