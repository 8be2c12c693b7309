"""Client libraries for Python, feature by feature; docs/clients.md has the same as a table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.conftest import ClientPython
from tests.scripted import scripted_model, serving, tool_call

pytestmark = pytest.mark.clients

ALL = ("chat", "streaming", "tools", "schema", "errors", "cancelling")

FEATURES = {
    "openai_chat": ALL,
    "openai_responses": ALL,
    "ollama_chat": ALL,
    "langchain_openai_chat": ALL,
    "langchain_openai_responses": ALL,
    "langchain_ollama_chat": ALL,
    # Its answers are objects.
    "instructor_openai": ALL[1:],
    "pydantic_ai_openai": ALL,
    "pydantic_ai_responses": ALL,
    "llm_ollama_plugin": ALL,
    "litellm_openai": ALL,
    "litellm_ollama": ALL,
}
"""What each program in `programs/features` has."""

# To import litellm takes 8 s of CPU time.
SLOW = ("litellm_openai", "litellm_ollama")

REFUSED = {
    "openai_chat": "NotFoundError",
    "openai_responses": "NotFoundError",
    "ollama_chat": "ResponseError",
    "langchain_openai_chat": "OpenAIModelNotFoundError",
    "langchain_openai_responses": "OpenAIModelNotFoundError",
    "langchain_ollama_chat": "ResponseError",
    "instructor_openai": "InstructorRetryException",
    "pydantic_ai_openai": "ModelNotFoundError",
    "pydantic_ai_responses": "ModelNotFoundError",
    "llm_ollama_plugin": "ResponseError",
    "litellm_openai": "NotFoundError",
    "litellm_ollama": "NotFoundError",
}
"""The error that each raises for a model that is not served."""

COUNTED, LONG = "one two three", 12_000
CITY = {"city": "Orléans"}
CITY_JSON = json.dumps(CITY, ensure_ascii=False)


def script(prompt: str) -> str:
    """Return what the model writes: for a schema more than is valid, which the grammar must cut off."""
    question = prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    _, result, after = prompt.rpartition("<|im_start|>tool\n")
    if result:
        return f"It is {after.partition('<|im_end|>')[0]}."
    if "Forever" in question:
        return ('{"city": "' if "JSON" in question else "") + "x" * LONG
    if "Count" in question:
        return COUNTED
    if "Weather" in question:
        # instructor's tool is the class of the answer.
        return tool_call("City" if '"name": "City"' in prompt else "weather", CITY_JSON)
    return f"{CITY_JSON}, and so on" if "JSON" in question else "Paris."


Found = dict[str, dict[str, Any]]


def ran(client_python: ClientPython, *clients: str) -> Found:
    with serving(scripted_model(script)) as server:
        found: Found = client_python("features", server.url, *clients)
    return found


@pytest.fixture(scope="module")
def quick(client_python: ClientPython) -> Found:
    return ran(client_python, *(client for client in FEATURES if client not in SLOW))


@pytest.fixture(scope="module")
def slow(client_python: ClientPython) -> Found:
    return ran(client_python, *SLOW)


def marked(client: str, *values: str) -> Any:
    """Return the parameters of a test."""
    marks = [pytest.mark.slow] if client in SLOW else []
    return pytest.param(client, *values, marks=marks, id="-".join((client, *values)))


@pytest.fixture
def found(request: pytest.FixtureRequest, client: str) -> dict[str, Any]:
    """What a client got, by feature."""
    all_found: Found = request.getfixturevalue("slow" if client in SLOW else "quick")
    return all_found[client]


@pytest.mark.parametrize("client", [marked(client) for client in FEATURES])
def test_a_client_has_the_features_of_the_table(found: dict[str, Any], client: str) -> None:
    assert tuple(found) == FEATURES[client]


@pytest.mark.parametrize(
    ("client", "feature"), [marked(client, feature) for client, features in FEATURES.items() for feature in features]
)
def test_a_feature_of_a_client(found: dict[str, Any], client: str, feature: str) -> None:
    got = found[feature]
    if isinstance(got, dict) and "raised" in got:
        pytest.fail(f"{client}, {feature}: {got['raised']}")
    if client == "instructor_openai" and feature in {"streaming", "tools", "schema"}:
        instructor(feature, got)
    elif feature == "chat":
        assert got == "Paris."
    elif feature == "streaming":
        assert "".join(got) == COUNTED
        assert len(got) > 2
    elif feature == "tools":
        assert got["called"] == [["weather", CITY]]
        assert got.get("streamed", got["called"]) == got["called"]
        assert got["answer"] == "It is sunny in Orléans."
    elif feature == "schema":
        assert got == CITY
    elif feature == "errors":
        name, message = got
        assert name == REFUSED[client]
        assert "model `other` is not served here" in message
    else:
        # The daemon has stopped generating, by its own count.
        assert got == ["x", {"cancelled": 1}]


def instructor(feature: str, got: Any) -> None:
    """Check what instructor got: objects, one after the other as they grow, by a tool, and in its modes for JSON."""
    if feature == "streaming":
        assert got[-1] == CITY["city"]
        assert set(got) >= {"O", "Orl", "Orléan"}
    else:
        assert got == (CITY if feature == "tools" else [CITY] * 3)
