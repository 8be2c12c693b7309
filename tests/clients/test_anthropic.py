"""Anthropic's client, with everything that coding agents use of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.conftest import ClientPython
from tests.daemon.mqtt.conftest import eventually
from tests.scripted import ScriptedRunner, scripted_model, serving, tool_call

pytestmark = pytest.mark.clients

LONG = 12_000


def script(prompt: str) -> str:
    last = prompt.rpartition("<|im_start|>user\n")[2]
    if "Forever" in last:
        return "x" * LONG
    if "Prompt" in last:
        return prompt.replace("<tool_call>", "TAG")
    if "JSON" in last:
        return '"Rome"'
    if "think" in last:
        return "<think>Easy.</think>\n\nParis."
    if "Weather" in last and "<|im_start|>tool" not in prompt:
        return tool_call("weather", '{"city": "Paris"}')
    return "It is sunny." if "<|im_start|>tool" in prompt else "Paris."


@pytest.fixture(scope="module")
def found(client_python: ClientPython) -> Iterator[dict[str, Any]]:
    model = scripted_model(script)
    with serving(model) as server:
        cases = client_python("anthropic_messages", server.url)
        runner = model.runner
        assert isinstance(runner, ScriptedRunner)
        # The client has closed the stream.
        assert eventually(lambda: server._backend()[0].queue_length() == 0, 60)
        cases["tokens"] = runner.tokens
        yield cases


TEXT = [{"type": "text", "text": "Paris."}]
CALL = {"type": "tool_use", "name": "weather", "input": {"city": "Paris"}}
BLOCK = ["content_block_start", "content_block_delta", "content_block_stop"]


def calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: value for name, value in block.items() if name != "id"} for block in message["content"]]


def events(case: dict[str, Any]) -> list[str]:
    """The API's own events; the client adds others, such as `text`."""
    return [one for one in case["events"] if one.startswith(("message_", "content_"))]


def test_text_is_a_block(found: dict[str, Any]) -> None:
    assert (found["text"]["content"], found["text"]["reason"]) == (TEXT, ["end_turn", None])
    assert found["text"]["usage"] == [found["counted"], len("Paris.") + 1]


def test_a_streamed_message_is_the_same(found: dict[str, Any]) -> None:
    for name in ("text", "call", "thinking"):
        case = found[f"{name} streamed"]
        assert calls(case) == calls(found[name])
        assert (case["reason"], case["usage"]) == (found[name]["reason"], found[name]["usage"])
        blocks = BLOCK * len(case["content"])
        assert set(events(case)) == {"message_start", *blocks, "message_delta", "message_stop"}
        assert (events(case)[0], events(case)[-2:]) == ("message_start", ["message_delta", "message_stop"])


def test_a_tool_is_called_and_its_result_answered(found: dict[str, Any]) -> None:
    for name in ("call", "any"):
        assert (calls(found[name]), found[name]["reason"]) == ([CALL], ["tool_use", None])
    assert found["conversation"]["content"] == [{"type": "text", "text": "It is sunny."}]
    assert [block["type"] for block in found["none"]["content"]] == ["text"]


def test_thoughts_are_blocks(found: dict[str, Any]) -> None:
    thought = {"type": "thinking", "thinking": "Easy.", "signature": "edgekit"}
    assert found["thinking"]["content"] == [thought, *TEXT]


def test_why_a_message_ended_is_told(found: dict[str, Any]) -> None:
    assert (found["stop"]["content"][0]["text"], found["stop"]["reason"]) == ("Pa", ["stop_sequence", "ri"])
    assert (found["cut off"]["content"][0]["text"], found["cut off"]["reason"]) == ("Par", ["max_tokens", None])


def test_a_message_that_the_client_begins_is_continued(found: dict[str, Any]) -> None:
    assert found["begun"]["content"] == [{"type": "text", "text": "ris."}]


def test_a_schema_is_enforced(found: dict[str, Any]) -> None:
    assert found["schema"]["content"] == [{"type": "text", "text": '"Rome"'}]


def test_what_a_coding_agent_sends_is_accepted(found: dict[str, Any]) -> None:
    prompt = found["agent"]["content"][0]["text"]
    for part in ("enable_thinking=True", "reasoning_effort=high", "You code.", '"name": "weather"'):
        assert part in prompt


def test_errors_are_anthropics(found: dict[str, Any]) -> None:
    bad = ["BadRequestError", "error", "invalid_request_error"]
    missing = ["NotFoundError", "error", "not_found_error"]
    assert found["errors"] == [missing, bad, bad, bad, missing]


def test_a_closed_stream_cancels_the_request(found: dict[str, Any]) -> None:
    assert found["cancelled"].startswith("x")
    assert found["tokens"] < LONG
