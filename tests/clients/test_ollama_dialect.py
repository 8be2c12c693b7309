"""Clients of Ollama's API that are programs or run on Node.js; `test_features.py` has those for Python."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from edgekit.daemon.http.server import HttpServer
from tests.clients.conftest import ClientNode, ClientPython, ended
from tests.daemon.mqtt.conftest import eventually
from tests.scripted import scripted_model, serving, tool_call

pytestmark = pytest.mark.clients

ORLEANS = {"city": "Orléans"}


def script(prompt: str) -> str:
    question = prompt.rpartition("<|im_start|>user\n")[2]
    if "Count" in question:
        return "one two three " * 400
    if "weather" in question:
        return tool_call("weather", json.dumps(ORLEANS, ensure_ascii=False))
    return '{"city": "Orléans"}' if "JSON" in question else "Paris."


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with serving(scripted_model(script, context_length=32_768)) as running:
        yield running


def test_ollamas_client_for_javascript_chats_streams_calls_tools_obeys_a_schema_sees_errors_and_cancels(
    server: HttpServer, client_node: ClientNode
) -> None:
    assert client_node("ollama_js", server.url) == {
        "text": "Paris.",
        "streamed": "Paris.",
        "called": [["weather", ORLEANS]],
        "structured": ORLEANS,
        "error": "model `other` is not served here (this daemon serves `scripted`)",
        "stopped": "AbortError",
        "listed": ["scripted:latest"],
    }
    assert eventually(lambda: ended(server, "cancelled") == 1, 60)


@pytest.mark.slow
def test_continues_command_line_chats(server: HttpServer, client_node: ClientNode) -> None:
    assert client_node("continue_cli", server.url) == {"ollama": "Paris.", "openai": "Paris."}


@pytest.mark.slow
def test_llms_command_line(server: HttpServer, client_python: ClientPython) -> None:
    assert client_python("llm_ollama", server.url) == {
        "listed": True,
        "text": "Paris.",
        "streamed": "Paris.",
        "structured": '{"city": "Orléans"}',
    }
