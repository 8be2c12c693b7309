"""JavaScript clients of OpenAI's APIs: the AI SDK (npm `ai`) with two of its providers, and `openai`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.conftest import ClientNode
from tests.clients.node_daemon import outcomes, requiring_key
from tests.daemon.mqtt.conftest import eventually

pytestmark = pytest.mark.clients

Found = dict[str, Any]

PARIS = {"city": "Paris"}
NOT_SERVED = "model `other` is not served here (this daemon serves `scripted`)"
WRONG_KEY = "the API key is not valid (`edgekit key list` shows the keys)"


@pytest.fixture(scope="module")
def every(client_node: ClientNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """What both programs got from one daemon, and how many of their requests were cancelled by the daemon's count."""
    with requiring_key(tmp_path_factory.mktemp("keys")) as (server, key, metrics):
        found = client_node("ai_sdk", server.url, key)
        # Three APIs; a stream and an answer as a whole.
        found["cancelled"] = eventually(lambda: outcomes(metrics).get("cancelled") == 6, 60)
        found["openai"] = client_node("openai_js", server.url, key)
        found["openai"]["cancelled"] = eventually(lambda: outcomes(metrics).get("cancelled") == 8, 60)
        yield found


@pytest.fixture(params=["responses", "chat", "compatible"])
def found(request: pytest.FixtureRequest, every: Found) -> Found:
    """What the AI SDK got: by OpenAI's provider over the Responses API, its default, and over chats; by the other."""
    one: Found = every[request.param]
    return {"api": request.param, **one}


def test_the_ai_sdk_gets_texts_whole_and_streamed(found: Found) -> None:
    answer = {"text": "Paris.", "finishReason": "stop", "usage": [True, len("Paris.") + 1]}
    assert found["text"] == answer
    assert found["streamed"] == {**answer, "several": True}


def test_the_ai_sdk_gets_thoughts_and_sends_them_back(found: Found) -> None:
    # OpenAI's provider takes none from a chat: OpenAI's own models give none there.
    thoughts = {} if found["api"] == "chat" else {"reasoning": "Easy."}
    assert found["thoughts"] == {"text": "Paris.", "again": "Paris.", **thoughts}


@pytest.mark.parametrize("case", ["tools", "streamedTools"])
def test_the_ai_sdk_runs_tools_and_answers_in_steps(found: Found, case: str) -> None:
    assert found[case] == {
        "asked": ["Paris", "Rome"],
        "steps": [["tool-calls", 2, ""], ["stop", 0, "Sunny in both."]],
        "again": "Paris.",
    }


def test_the_ai_sdk_demands_or_forbids_a_tool(found: Found) -> None:
    call = ["weather", {"city": "Oslo"}]
    assert found["forced"] == {"required": [call], "named": [call], "none": []}


def test_the_ai_sdk_gets_objects_of_a_schema(found: Found) -> None:
    assert found["structured"] == {
        "text": PARIS,
        "streamed": PARIS,
        "partial": True,
        "object": PARIS,
        "choice": "yes",
    }


def test_the_ai_sdk_shows_the_daemons_errors_and_does_not_retry_them(found: Found) -> None:
    assert found["errors"] == {
        "model": ["AI_APICallError", 404, False, NOT_SERVED],
        "key": ["AI_APICallError", 401, False, WRONG_KEY],
        "streamed": ["AI_APICallError", 404],
    }


def test_a_request_that_the_ai_sdk_aborts_ends_on_the_daemon(every: Found, found: Found) -> None:
    assert found["cancelled"] == {"began": True, "seen": ["abort"], "full": "AbortError"}
    assert every["cancelled"]


def test_openais_client_for_javascript_does_all_of_it_over_both_apis(every: Found) -> None:
    errors = {
        "model": ["NotFoundError", 404, "model_not_found"],
        "key": ["AuthenticationError", 401, "invalid_api_key"],
    }
    both = {
        "text": "Paris.",
        "streamed": "Paris.",
        "usage": True,
        "tools": "Sunny in both.",
        "structured": PARIS,
        "errors": errors,
        "cancelled": True,
    }
    assert every["openai"] == {
        "chat": {**both, "streamedTools": "Sunny in both.", "asked": ["Paris", "Paris", "Rome", "Rome"]},
        "responses": {**both, "numbered": True, "asked": ["Paris", "Rome"]},
        "listed": ["scripted"],
        "cancelled": True,
    }
