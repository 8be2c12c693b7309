"""The requests of programs that speak Ollama's API and cannot run here, replayed: `ollama`, Open WebUI, Home Assistant.

The bodies are those that their sources send, written anew; Home Assistant's go through the client that it uses.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import ollama
import pytest

from tests.daemon.http.conftest import Serve, Served
from tests.scripted import scripted_model, tool_call

AGENT = {"User-Agent": "ollama/0.33.0 (amd64 linux) Go/go1.24", "Accept": "application/x-ndjson"}
NAME = "scripted"


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve(scripted_model(lambda prompt: tool_call("turn_on", "{}") if "Light" in prompt else "Paris."))


def ndjson(served: Served, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = served.http.post(path, json=body, headers=AGENT)
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def show(served: Served, name: str) -> Any:
    body: dict[str, Any] = {"model": name, "system": "", "template": "", "verbose": False, "options": None, "name": ""}
    return served.http.post("/api/show", json=body, headers=AGENT)


def test_ollama_run_finds_the_model_loads_it_and_chats(served: Served) -> None:
    assert served.http.head("/", headers=AGENT).status_code == 200
    found = show(served, NAME).json()
    assert {"template", "license", "parameters", "details", "model_info", "capabilities"} <= found.keys()
    # As the program's structures have them: fields without a value are sent too.
    empty = {"prompt": "", "suffix": "", "system": "", "template": "", "options": None}
    (loaded,) = ndjson(served, "/api/generate", {"model": NAME, **empty})
    assert (loaded["done"], loaded["done_reason"]) == (True, "load")
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "options": {}, "truncate": None}
    *chunks, last = ndjson(served, "/api/chat", {"model": NAME, **asked})
    assert "".join(chunk["message"]["content"] for chunk in chunks) == "Paris."
    assert last["done"]
    assert {"total_duration", "load_duration", "prompt_eval_count", "eval_count", "eval_duration"} <= last.keys()
    assert not any("warnings" in chunk for chunk in (loaded, *chunks, last))


def test_ollama_run_with_a_prompt_generates(served: Served) -> None:
    empty = {"suffix": "", "system": "", "template": "", "options": {}, "context": [], "format": ""}
    *chunks, last = ndjson(served, "/api/generate", {"model": NAME, "prompt": "Hello", **empty})
    assert "".join(chunk["response"] for chunk in chunks) == "Paris."
    assert all(isinstance(token, int) for token in last["context"])


def test_ollama_run_of_another_model_pulls_it_and_shows_why_it_cannot(served: Served) -> None:
    missing = show(served, "llama3.2")
    assert missing.status_code == 404
    pull = {"model": "llama3.2", "username": "", "password": "", "name": ""}
    refused = served.http.post("/api/pull", json=pull, headers=AGENT)
    assert refused.status_code == 404
    assert "edgekit export" in refused.json()["error"]


def test_ollama_lists_ps_stops_and_tells_its_version(served: Served) -> None:
    (listed,) = served.http.get("/api/tags", headers=AGENT).json()["models"]
    (running,) = served.http.get("/api/ps", headers=AGENT).json()["models"]
    assert listed["digest"][:12] == running["digest"][:12]
    assert {"name", "size", "size_vram", "context_length", "expires_at"} <= running.keys()
    empty = {"prompt": "", "suffix": "", "system": "", "template": "", "options": None}
    (stopped,) = ndjson(served, "/api/generate", {"model": NAME, **empty, "keep_alive": "0s"})
    assert stopped["done_reason"] == "unload"
    assert served.http.get("/api/version", headers=AGENT).json()["version"].count(".") == 2


def test_open_webui_connects_and_chats(served: Served) -> None:
    assert served.http.get("/api/version").status_code == 200
    (model,) = served.http.get("/api/tags").json()["models"]
    assert served.http.get("/api/ps").json()["models"][0]["name"] == model["name"]
    body = {
        "model": model["model"],
        "messages": [{"role": "user", "content": "Hello", "images": []}],
        "stream": True,
        "options": {"num_ctx": 4096, "temperature": 0.8, "stop": ["###"]},
        "keep_alive": "5m",
        "metadata": {"chat_id": "1"},
    }
    *chunks, last = ndjson(served, "/api/chat", body)
    assert "".join(chunk["message"]["content"] for chunk in chunks) == "Paris."
    assert last["warnings"] == ["the field `metadata` is unknown and has no effect"]


def test_home_assistant_sets_up_and_controls_a_light(served: Served) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "turn_on",
            "description": "Turns on a device",
            "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": []},
        },
    }

    async def assist(client: ollama.AsyncClient) -> tuple[list[str], str]:
        names = [str(model.model) for model in (await client.list()).models]
        await client.pull(NAME)
        history: list[Any] = [{"role": "system", "content": "You are a voice assistant."}]
        fields: dict[str, Any] = {"keep_alive": "-1s", "options": {"num_ctx": 8192}, "think": False, "stream": True}
        calls: list[Any] = []
        content = ""
        asked = {"role": "user", "content": "Light on, please."}
        async for chunk in await client.chat(model=names[0], messages=[*history, asked], tools=[tool], **fields):
            content += chunk.message.content or ""
            calls += chunk.message.tool_calls or []
        history += [
            {"role": "user", "content": "The lamp on, please."},
            {"role": "assistant", "content": content, "tool_calls": calls},
            {"role": "tool", "content": '{"success": true}', "tool_name": calls[0].function.name},
        ]
        answer = [part async for part in await client.chat(model=names[0], messages=history, tools=[tool], **fields)]
        return [call.function.name for call in calls], "".join(part.message.content or "" for part in answer)

    async def connected() -> tuple[list[str], str]:
        async with ollama.AsyncClient(served.server.url) as client:
            return await assist(client)

    assert asyncio.run(connected()) == (["turn_on"], "Paris.")
