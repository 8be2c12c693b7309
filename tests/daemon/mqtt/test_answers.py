"""Tool calls, several answers and log probabilities, through a real mosquitto."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from edgekit.daemon.mqtt.service import MqttService
from edgekit.generation.types import Delta, ResponseFormat, TokenLogprob, Tool, ToolChoice
from tests.broker import Broker, Caller
from tests.daemon.mqtt.conftest import CANCEL, REQUEST, MakeService, chat
from tests.daemon.mqtt.scripted import (
    ARGUMENTS,
    WORDS,
    Playing,
    ScriptedWorker,
    answer_in_turn,
    answer_twice,
    call_tools,
    finish,
    tell_logprobs,
)

pytestmark = pytest.mark.broker

TOKEN = TokenLogprob(1, b"a", -1.0, top=tuple((number, b"a", -1.0) for number in range(20)))
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("weather", "time")]


def joined(deltas: list[Any]) -> dict[int, dict[str, Any]]:
    """Join streamed tool call deltas by index, as a caller would."""
    calls: dict[int, dict[str, Any]] = {}
    for delta in (delta for message in deltas for delta in message.get("tool_calls", ())):
        call = calls.setdefault(delta["index"], {"function": {"arguments": ""}})
        call["function"]["arguments"] += delta["function"]["arguments"]
        if "id" in delta:
            call |= {"id": delta["id"], "type": delta["type"]}
            call["function"]["name"] = delta["function"]["name"]
    return calls


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.usefixtures("service")
def test_tool_calls_are_in_the_final_message_and_their_deltas_join_to_them(
    broker: Broker, worker: ScriptedWorker, *, stream: bool
) -> None:
    worker.script = call_tools
    with Caller(broker.port, "caller/t") as caller:
        body = chat(tools=TOOLS, tool_choice="required", stream=stream)
        caller.publish(REQUEST, body, ResponseTopic="caller/t")
        *deltas, final = caller.until("final")
    assert final["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": ARGUMENTS[number]}}
            for number, name in enumerate(("weather", "time"))
        ],
    }
    assert final["finish_reason"] == "tool_calls"
    assert "choices" not in final
    if stream:
        assert [message["seq"] for message in [*deltas, final]] == list(range(len(deltas) + 1))
        # A caller that does not support tool calls sees only empty text.
        assert {message["text"] for message in deltas} == {""}
        assert [joined(deltas)[number] for number in (0, 1)] == final["message"]["tool_calls"]
    request = worker.played[0].request
    assert request.tools == (Tool("weather"), Tool("time"))
    assert request.tool_choice == ToolChoice("required")


def test_each_of_several_answers_is_streamed_under_its_index(
    broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    worker.script = answer_twice
    make_service(coalesce_ms=0)
    with Caller(broker.port, "caller/n") as caller:
        caller.publish(REQUEST, chat(n=2, stream=True), ResponseTopic="caller/n")
        *deltas, final = caller.until("final")
    texts: dict[int, str] = defaultdict(str)
    for message in deltas:
        texts[message.get("index", 0)] += message["text"]
    text = "".join(WORDS)
    assert texts == {0: text, 1: text.upper()}
    assert [message["seq"] for message in [*deltas, final]] == list(range(len(deltas) + 1))
    assert [(choice["index"], choice["message"]["content"]) for choice in final["choices"]] == [
        (0, text),
        (1, text.upper()),
    ]
    assert [choice["finish_reason"] for choice in final["choices"]] == ["stop", "length"]
    assert (final["message"]["content"], final["finish_reason"]) == (text, "stop")


@pytest.mark.usefixtures("service")
def test_an_answer_that_ends_early_has_its_finish_reason_in_its_last_delta(
    broker: Broker, worker: ScriptedWorker
) -> None:
    worker.script = answer_in_turn
    with Caller(broker.port, "caller/e") as caller:
        caller.publish(REQUEST, chat(n=2, stream=True, id="e"), ResponseTopic="caller/e")
        deltas = [caller.next()]
        while "finish_reason" not in deltas[-1]:
            deltas.append(caller.next())
        # The first one goes on until it is cancelled.
        assert worker.queue_length() == 1
        caller.publish(CANCEL, {"id": "e"}, ResponseTopic="caller/e")
        *rest, final = caller.until("final")
    assert (deltas[-1]["index"], deltas[-1]["finish_reason"]) == (1, "length")
    assert "".join(message["text"] for message in deltas if message.get("index") == 1) == "PARIS"
    assert [(message.get("index", 0), "finish_reason" in message) for message in rest] == [(0, False)]
    assert [choice["finish_reason"] for choice in final["choices"]] == ["cancelled", "length"]


@pytest.mark.usefixtures("service")
def test_log_probabilities_are_in_deltas_and_all_in_the_final_message(broker: Broker, worker: ScriptedWorker) -> None:
    worker.script = tell_logprobs
    with Caller(broker.port, "caller/p") as caller:
        caller.publish(REQUEST, chat(logprobs=True, top_logprobs=2, stream=True), ResponseTopic="caller/p")
        *deltas, final = caller.until("final")
        caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/p")
        without = caller.until("final")
    tokens = final["logprobs"]["content"]
    assert [token["logprob"] for token in tokens] == [-0.5, -1.0, 0.0]
    assert bytes(byte for token in tokens for byte in token["bytes"]).decode() == "Hi 🗼"
    assert [token for message in deltas for token in message["logprobs"]["content"]] == tokens
    assert all("logprobs" not in message for message in without)


def test_log_probabilities_that_exceed_a_packet_take_several_messages(
    broker: Broker, worker: ScriptedWorker, service: MqttService
) -> None:
    def burst(playing: Playing) -> None:
        for seq in range(300):
            playing.on_event(Delta(seq, "a", logprobs=(TOKEN,)))
        playing.on_event(finish())

    worker.script = burst
    with Caller(broker.port, "caller/m") as caller:
        caller.publish(REQUEST, chat(logprobs=True, top_logprobs=20, stream=True), ResponseTopic="caller/m")
        *deltas, final = caller.until("final")
    assert service.stats().dropped == 0
    assert sum(len(message["logprobs"]["content"]) for message in deltas) == len(final["logprobs"]["content"]) == 300
    assert max(len(message["logprobs"]["content"]) for message in deltas) < 10
    assert "".join(message["text"] for message in deltas) == "a" * 300


@pytest.mark.usefixtures("service")
def test_a_prompt_in_place_of_messages_is_completed(broker: Broker, worker: ScriptedWorker) -> None:
    with Caller(broker.port, "caller/c") as caller:
        body = {"prompt": "Once", "max_tokens": 9, "echo": True, "logprobs": 1, "id": "c"}
        caller.publish(REQUEST, body, ResponseTopic="caller/c")
        final = caller.next()
    assert final["message"]["content"] == "".join(WORDS)
    request = worker.played[0].request
    assert (request.prompt, request.max_tokens, request.echo, request.logprobs) == ("Once", 9, True, 1)


@pytest.mark.usefixtures("service")
def test_the_same_fields_are_read_as_over_http(broker: Broker, worker: ScriptedWorker) -> None:
    fields = {
        "response_format": {"type": "regex", "regex": "a+"},
        "repeat_penalty": 1.2,
        "logit_bias": {"7": -100},
        "priority": 3,
        "truncation": "auto",
        "speculation": False,
        "cache_prompt": False,
    }
    with Caller(broker.port, "caller/h") as caller:
        caller.publish(REQUEST, chat(**fields), ResponseTopic="caller/h")
        caller.next()
    request = worker.played[0].request
    assert request.response_format == ResponseFormat("regex", "a+")
    assert (request.sampling.repetition_penalty, request.sampling.logit_bias) == (1.2, {7: -100})
    assert (request.priority, request.truncation, request.speculation, request.cache_prompt) == (
        3,
        "auto",
        False,
        False,
    )
    assert (request.tenant, request.client) == ("", "caller/h")


@pytest.mark.usefixtures("service")
def test_unknown_fields_are_ignored_and_the_final_message_names_the_first_few(broker: Broker) -> None:
    with Caller(broker.port, "caller/i") as caller:
        caller.publish(
            REQUEST, chat(id="a", mood=1, **{f"\u00fc{number}": 1 for number in range(99)}), ResponseTopic="caller/i"
        )
        caller.publish(REQUEST, chat(id="b"), ResponseTopic="caller/i")
        finals = {message["id"]: message for message in (caller.next(), caller.next())}
    assert finals["a"]["ignored"] == ["mood", *(f"?{number}" for number in range(7))]
    assert "ignored" not in finals["b"]


def test_an_answer_beyond_n_fails_its_request_and_leaves_the_service_working(
    broker: Broker, worker: ScriptedWorker, service: MqttService
) -> None:
    def stray(playing: Playing) -> None:
        playing.on_event(Delta(0, "?", index=5))

    with Caller(broker.port, "caller/s") as caller:
        worker.script = stray
        caller.publish(REQUEST, chat(), ResponseTopic="caller/s")
        assert caller.next()["error"]["code"] == "internal_error"
        worker.script = answer_twice
        caller.publish(REQUEST, chat(n=2), ResponseTopic="caller/s")
        assert len(caller.next()["choices"]) == 2
    assert service.stats().reconnects == 0
