"""The messages, programs and access list in `docs/mqtt.md` match the real behaviour."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.daemon.device import device_status
from edgekit.generation.types import ChoiceFinished, Delta, TokenLogprob, ToolCallDelta
from edgekit.jetson.device import find_jetson
from tests.broker import Broker, Caller, tool
from tests.daemon.mqtt.conftest import CANCEL, REQUEST, MakeService, chat, eventually
from tests.daemon.mqtt.scripted import WORDS, Playing, ScriptedWorker, finish, speak, wait_for_cancel
from tests.jetson.tree import write_nano

pytestmark = pytest.mark.broker

PAGE = (Path(__file__).parents[3] / "docs" / "mqtt.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def documented(kind: str) -> list[dict[str, Any]]:
    """The page's messages of a type, the simplest first."""
    return [message for message in map(json.loads, blocks("json")) if message.get("type") == kind]


def shape(value: Any) -> Any:
    """The fields and types of a message; a list has the shapes of its items."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value)


@pytest.mark.usefixtures("service")
def test_every_message_of_the_page_has_the_fields_and_types_of_the_real_one(broker: Broker) -> None:
    with Caller(broker.port, "edgekit/box/#", "replies/a") as caller:
        real = [caller.next(), caller.next()]
        (request,) = [message for message in map(json.loads, blocks("json")) if "deadline_s" in message]
        caller.publish(REQUEST, {**request, "reply_to": "replies/a"})
        caller.publish(REQUEST, chat(reply_to="edgekit/box/status", id="7f3c"))
        caller.publish(REQUEST, chat(temperature=7, reply_to="replies/a", id="hot"))
        while len({message.get("type") for message in real}) < 7:
            real.append(caller.next())
    for message in real:
        if "type" not in message:
            continue  # our own requests, which also arrive on `edgekit/box/#`
        expected = shape(documented(message["type"])[0])
        if message["type"] == "error":
            # This error has a parameter and no retry time; the page's has a retry time and no parameter.
            expected["error"] |= {"param": str, "hint": type(None)}
            del expected["error"]["retry_after_s"]
        assert shape(message) == expected


def test_the_status_of_a_board_with_sensors_looks_as_on_the_page(
    broker: Broker, make_service: MakeService, tmp_path: Path
) -> None:
    jetson = find_jetson(write_nano(tmp_path / "nano"))
    assert jetson is not None
    make_service(device=lambda: device_status(jetson))
    with Caller(broker.port, "edgekit/box/status") as caller:
        assert shape(caller.next()) == shape(documented("status")[1])


def call_then_say(playing: Playing) -> None:
    """The page's second `final`, in the deltas that the page shows."""
    token = TokenLogprob(7, b" Paris", -0.02, top=((7, b" Paris", -0.02),))
    for event in (
        ToolCallDelta(0, 0, '{"city": "Par', id="call_8d1f", name="weather"),
        ToolCallDelta(1, 0, 'is"}'),
        Delta(2, " Paris", index=1, logprobs=(token,)),
        ChoiceFinished(1, "length"),
    ):
        playing.on_event(event)
        playing.cancelled.wait(0.2)
    playing.on_event(replace(finish("tool_calls"), reasons=("tool_calls", "length")))


@pytest.mark.usefixtures("service")
def test_calls_answers_and_log_probabilities_look_as_on_the_page(broker: Broker, worker: ScriptedWorker) -> None:
    worker.script = call_then_say
    tools = [{"type": "function", "function": {"name": "weather"}}]
    with Caller(broker.port, "replies/a") as caller:
        body = chat(stream=True, tools=tools, n=2, logprobs=True, top_logprobs=1)
        caller.publish(REQUEST, body, ResponseTopic="replies/a")
        *deltas, final = caller.until("final")
    first, second, third, fourth = documented("delta")[1:]
    # The page shows calls without log probabilities.
    for message in (*deltas[:2], deltas[3]):
        assert message.pop("logprobs") == {"content": [], "refusal": None}
    assert [shape(message) for message in deltas] == [shape(first), shape(second), shape(third), shape(fourth)]
    assert [deltas[0]["tool_calls"], deltas[1]["tool_calls"]] == [
        [{**call, "id": "call_8d1f"} if "id" in call else call for call in message["tool_calls"]]
        for message in (first, second)
    ]
    expected = documented("final")[1]
    # The page's token has no alternatives.
    final["choices"][1]["logprobs"]["content"][0]["top_logprobs"] = []
    assert shape(final) == shape(expected)
    assert (final["message"], final["choices"]) == (expected["message"], expected["choices"])


def test_the_python_example_prints_the_answer(broker: Broker, make_service: MakeService) -> None:
    make_service(device_id="kitchen")
    (example,) = blocks("python")
    assert 'connect("broker.local")' in example
    example = example.replace('connect("broker.local")', f'connect("127.0.0.1", {broker.port})')
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, timeout=30, check=True)
    assert done.stdout.decode().startswith("".join(WORDS) + "\n")
    assert b"'completion_tokens': 8" in done.stdout


def test_the_access_list_of_the_page_lets_users_ask_and_keeps_them_apart(
    tmp_path: Path, make_service: MakeService, worker: ScriptedWorker
) -> None:
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    settings, acl = blocks("conf")
    (folder / "acl").write_text(acl)
    (commands,) = blocks("sh")
    for line in commands.splitlines():
        program, *arguments = line.replace("/etc/mosquitto", str(folder)).split()
        # Twice at the prompt; the password is the user's name here.
        password = f"{arguments[-1]}\n" * 2
        subprocess.run([tool(program), *arguments], input=password, text=True, capture_output=True, check=True)
    for name in ("passwords", "acl"):
        (folder / name).chmod(0o600)
    # The test's broker has a listener of its own, without TLS.
    config = [
        line.replace("/etc/mosquitto", str(folder))
        for line in settings.splitlines()
        if not line.startswith(("listener", "certfile", "keyfile"))
    ]
    (tmp_path / "password").write_text("kitchen")
    request, cancel = "edgekit/kitchen/chat/request", "edgekit/kitchen/chat/cancel"
    with Broker(folder, config=config) as broker:
        service = make_service(
            port=broker.port,
            device_id="kitchen",
            username="kitchen",
            password_file=tmp_path / "password",
            reply_prefixes=("replies",),
            require_user=True,
        )
        with (
            Caller(broker.port, "replies/ann/#", "edgekit/kitchen/status", user="ann") as ann,
            Caller(broker.port, "#", user="bob") as bob,
        ):
            assert ann.next()["state"] == "online"
            # Bob receives only status and info, whatever he subscribes to.
            assert {bob.message().topic for _ in range(2)} == {"edgekit/kitchen/status", "edgekit/kitchen/info"}
            ann.publish(f"{request}/ann", chat(id="1"), ResponseTopic="replies/ann/1")
            assert ann.next()["message"]["content"] == "".join(WORDS)
            assert worker.played[-1].request.tenant == "mqtt:ann"
            # He cannot ask as Ann, without a name, or as the device, nor have an answer sent to her.
            for topic in (f"{request}/ann", request, f"{request}/kitchen", "replies/ann/1"):
                bob.publish(topic, chat(id="2"), ResponseTopic="replies/ann/1")
            bob.publish(f"{request}/bob", chat(id="3"), ResponseTopic="replies/ann/1")
            bob.publish("edgekit/kitchen/status", {"state": "offline"}, retain=True)
            # His own request comes after all of these.
            bob.publish(f"{request}/bob", chat(id="4"), ResponseTopic="replies/bob/1")
            reply = bob.message()
            assert (reply.topic, json.loads(reply.payload)["id"]) == ("replies/bob/1", "4")
            assert [playing.request.client for playing in worker.played] == ["mqtt:ann", "mqtt:bob"]
            # Nor cancel hers, nor read her answers.
            worker.script = wait_for_cancel
            ann.publish(f"{request}/ann", chat(id="5"), ResponseTopic="replies/ann/5")
            assert eventually(lambda: len(worker.played) == 3)
            for topic in (f"{cancel}/bob", f"{cancel}/ann", cancel):
                bob.publish(topic, chat(id="5"), ResponseTopic="replies/ann/5")
            worker.script = speak
            bob.publish(f"{request}/bob", chat(id="6"), ResponseTopic="replies/bob/1")
            assert bob.next()["id"] == "6"
            assert not worker.played[2].cancelled.is_set()
            ann.publish(f"{cancel}/ann", chat(id="5"), ResponseTopic="replies/ann/5")
            last = ann.next()
            assert (last["id"], last["finish_reason"]) == ("5", "cancelled")
            assert ann.silent(0.1)
            assert bob.silent(0.1)
        service.stop()


def test_the_cancellation_of_the_page_cancels_the_request_of_the_page(
    broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    make_service()
    worker.script = wait_for_cancel
    (cancel,) = [message for message in map(json.loads, blocks("json")) if set(message) == {"id", "reply_to"}]
    with Caller(broker.port, cancel["reply_to"]) as caller:
        caller.publish(REQUEST, chat(**cancel))
        caller.publish(CANCEL, cancel)
        assert caller.next()["finish_reason"] == "cancelled"
