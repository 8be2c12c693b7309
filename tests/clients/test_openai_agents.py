"""The openai-agents SDK over both of OpenAI's APIs; the Responses API is its default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.conftest import ClientPython
from tests.clients.test_anthropic import LONG, script
from tests.daemon.mqtt.conftest import eventually
from tests.scripted import ScriptedRunner, scripted_model, serving

pytestmark = pytest.mark.clients


def answers(prompt: str) -> str:
    return '{"city":"Paris"}' if "As JSON" in prompt else script(prompt)


@pytest.fixture(scope="module")
def found(client_python: ClientPython) -> Iterator[dict[str, Any]]:
    model = scripted_model(answers)
    with serving(model) as server:
        cases = client_python("openai_agents", server.url)
        runner = model.runner
        assert isinstance(runner, ScriptedRunner)
        assert eventually(lambda: server._backend()[0].queue_length() == 0, 60)
        cases["tokens"] = runner.tokens
        yield cases


@pytest.mark.parametrize("api", ["responses", "chat_completions"])
def test_an_agent_calls_its_tool_and_answers(found: dict[str, Any], api: str) -> None:
    case = found[api]
    assert (case["final"], case["asked"], case["again"]) == ("It is sunny.", ["Paris"], "It is sunny.")
    assert case["items"] == ["tool_call_item", "tool_call_output_item", "message_output_item"]
    assert case["streamed"] == {
        "texts": "It is sunny.",
        "items": ["tool_called", "tool_output", "message_output_created"],
        "final": "It is sunny.",
    }
    assert (case["schema"], case["error"]) == ("Paris", "model_not_found")


def test_a_conversation_goes_on_by_its_id(found: dict[str, Any]) -> None:
    # The script sees the tool's result, which only the store has.
    assert found["previous"] == "It is sunny."


def test_thoughts_come_back_without_a_store(found: dict[str, Any]) -> None:
    assert found["thinking"] == ["reasoning_item", "message_output_item"]
    assert "<think>\nEasy.\n</think>" in found["thought"]


def test_cancelled_runs_end_on_the_daemon(found: dict[str, Any]) -> None:
    assert found["tokens"] < 2 * LONG
