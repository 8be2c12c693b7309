"""The openai-agents SDK over both of OpenAI's APIs; the Responses API is its default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.conftest import ClientPython, ended
from tests.clients.test_anthropic import script
from tests.daemon.mqtt.conftest import eventually
from tests.scripted import scripted_model, serving

pytestmark = pytest.mark.clients


def answers(prompt: str) -> str:
    return '{"city":"Paris"}' if "As JSON" in prompt else script(prompt)


@pytest.fixture(scope="module")
def found(client_python: ClientPython) -> Iterator[dict[str, Any]]:
    with serving(scripted_model(answers)) as server:
        cases = client_python("openai_agents", server.url)
        # One for each API.
        cases["cancelled"] = eventually(lambda: ended(server, "cancelled") == 2, 60)
        yield cases


@pytest.fixture(params=["responses", "chat_completions"])
def case(request: pytest.FixtureRequest, found: dict[str, Any]) -> dict[str, Any]:
    by_api: dict[str, Any] = found[request.param]
    return by_api


def test_an_agent_calls_its_tool_and_answers(case: dict[str, Any]) -> None:
    assert (case["final"], case["asked"], case["again"]) == ("It is sunny.", ["Paris"], "It is sunny.")
    assert case["items"] == ["tool_call_item", "tool_call_output_item", "message_output_item"]


def test_a_run_is_streamed(case: dict[str, Any]) -> None:
    assert case["streamed"] == {
        "texts": "It is sunny.",
        "items": ["tool_called", "tool_output", "message_output_created"],
        "final": "It is sunny.",
    }


def test_a_schema_is_enforced_and_an_error_has_its_code(case: dict[str, Any]) -> None:
    assert (case["schema"], case["error"]) == ("Paris", "model_not_found")


def test_a_conversation_goes_on_by_its_id(found: dict[str, Any]) -> None:
    # The script sees the tool's result, which only the store has.
    assert found["previous"] == "It is sunny."


def test_thoughts_come_back_without_a_store(found: dict[str, Any]) -> None:
    assert found["thinking"] == ["reasoning_item", "message_output_item"]
    assert "<think>\nEasy.\n</think>" in found["thought"]


def test_cancelled_runs_end_on_the_daemon(found: dict[str, Any]) -> None:
    assert found["cancelled"]
