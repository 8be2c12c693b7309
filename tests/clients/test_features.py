"""Client libraries for Python, each with the features that it has: docs/clients.md has this as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.conftest import ClientPython
from tests.scripted import scripted_model, serving, tool_call

pytestmark = pytest.mark.clients

CHAT, STREAMING, TOOLS, SCHEMA, ERRORS, CANCELLING = "chat", "streaming", "tools", "schema", "errors", "cancelling"
ALL = (CHAT, STREAMING, TOOLS, SCHEMA, ERRORS, CANCELLING)

FEATURES = {
    "openai_chat": ALL,
    "openai_responses": ALL,
    "ollama_chat": ALL,
    "langchain_openai_chat": ALL,
    "langchain_openai_responses": ALL,
    "langchain_ollama_chat": ALL,
    # An answer is always an object.
    "instructor_openai": (STREAMING, TOOLS, SCHEMA, ERRORS, CANCELLING),
    "pydantic_ai_openai": ALL,
    "pydantic_ai_responses": ALL,
    "llm_ollama_plugin": ALL,
}
"""What each program of `programs/features` has; a program that has more or less fails."""

SLOW = {
    # The import alone takes 8 s of CPU time.
    "litellm_openai": ALL,
    "litellm_ollama": ALL,
}

REFUSED = {
    "openai_chat": "NotFoundError",
    "openai_responses": "NotFoundError",
    "ollama_chat": "ResponseError",
    "langchain_openai_chat": "NotFoundError",
    "langchain_openai_responses": "NotFoundError",
    "langchain_ollama_chat": "ResponseError",
    "instructor_openai": "InstructorRetryException",
    "pydantic_ai_openai": "ModelHTTPError",
    "pydantic_ai_responses": "ModelHTTPError",
    "llm_ollama_plugin": "ResponseError",
    "litellm_openai": "NotFoundError",
    "litellm_ollama": "APIConnectionError",
}
"""The error that a client raises for a model that is not served."""

LONG = 12_000
COUNTED = "one two three"
WEATHER = [["weather", {"city": "Orléans"}]]
CITY = {"city": "Orléans"}


def script(prompt: str) -> str:
    """What the model writes. What it writes for a schema is not valid until the grammar cuts it off."""
    question = prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    _, result, after = prompt.rpartition("<|im_start|>tool\n")
    if result:
        return f"It is {after.partition('<|im_end|>')[0]}."
    if "Forever" in question:
        return ('{"city": "' if "JSON" in question else "") + "x" * LONG
    if "Count" in question:
        return COUNTED
    if '"name": "City"' in prompt:
        return tool_call("City", json.dumps(CITY, ensure_ascii=False))
    if "Weather" in question:
        return tool_call("weather", json.dumps(CITY, ensure_ascii=False))
    return f"{json.dumps(CITY, ensure_ascii=False)}, and so on" if "JSON" in question else "Paris."


def ran(client_python: ClientPython, clients: dict[str, tuple[str, ...]]) -> dict[str, dict[str, Any]]:
    with serving(scripted_model(script)) as server:
        found: dict[str, dict[str, Any]] = client_python("features", server.url, *clients)
    return found


@pytest.fixture(scope="module")
def found(client_python: ClientPython) -> dict[str, dict[str, Any]]:
    return ran(client_python, FEATURES)


def expected(client: str, feature: str, got: Any) -> None:
    """Check what a client got."""
    if isinstance(got, dict) and "raised" in got:
        pytest.fail(f"{client} {feature}\n{got['raised']}")
    print(client, feature, got)


def having(feature: str) -> list[str]:
    return [client for client, features in FEATURES.items() if feature in features]


@pytest.mark.parametrize(("client", "feature"), [(client, feature) for client in FEATURES for feature in ALL])
def test_x(found, client, feature):
    expected(client, feature, found[client].get(feature))
