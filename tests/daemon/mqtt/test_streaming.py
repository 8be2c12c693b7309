"""Streamed answers, through a real mosquitto."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.generation.types import Delta
from tests.broker import Broker, Caller
from tests.daemon.mqtt.conftest import REQUEST, MakeService, chat
from tests.daemon.mqtt.scripted import WORDS, Playing, ScriptedWorker, finish

pytestmark = pytest.mark.broker

ANSWER = "".join(WORDS)


@pytest.mark.parametrize("qos", [0, 1])
def test_deltas_are_numbered_without_a_gap_and_join_to_the_final_text(
    broker: Broker, make_service: MakeService, worker: ScriptedWorker, qos: int
) -> None:
    def at_leisure(playing: Playing) -> None:
        for seq in range(200):
            playing.on_event(Delta(seq, WORDS[seq % len(WORDS)]))
            playing.cancelled.wait(0.002)
        playing.on_event(finish())

    worker.script = at_leisure
    make_service(coalesce_ms=20)
    with Caller(broker.port, "caller/s", qos=qos) as caller:
        caller.publish(REQUEST, chat(stream=True, id="s"), ResponseTopic="caller/s", CorrelationData=b"c")
        *deltas, final = caller.until("final")
    assert {message["type"] for message in deltas} == {"delta"}
    assert [message["seq"] for message in deltas] == list(range(len(deltas)))
    assert final["seq"] == len(deltas)
    assert 3 < len(deltas) < 60, "200 deltas over 0.4 s, coalesced over 20 ms each"
    assert "".join(message["text"] for message in deltas) == final["message"]["content"] == ANSWER * 25
    assert {message["id"] for message in [*deltas, final]} == {"s"}


@pytest.mark.usefixtures("service")
def test_a_long_answer_that_arrives_at_once_is_complete(broker: Broker, worker: ScriptedWorker) -> None:
    text = "äöü" * 10_000

    def burst(playing: Playing) -> None:
        for seq in range(3):
            playing.on_event(Delta(seq, text))
        playing.on_event(finish())

    worker.script = burst
    with Caller(broker.port, "caller/l") as caller:
        caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/l")
        *deltas, final = caller.until("final")
    assert [message["seq"] for message in deltas] == list(range(len(deltas)))
    assert "".join(message["text"] for message in deltas) == final["message"]["content"] == text * 3


def test_an_answer_larger_than_the_brokers_packets_is_replaced_by_an_error(
    tmp_path: Path, make_service: MakeService, worker: ScriptedWorker
) -> None:
    def long(playing: Playing) -> None:
        playing.on_event(Delta(0, "é" * 3000))
        playing.on_event(finish())

    worker.script = long
    folder = tmp_path / "small"
    folder.mkdir()
    with Broker(folder, config=("allow_anonymous true", "max_packet_size 2000")) as small:
        make_service(port=small.port)
        with Caller(small.port, "caller/big") as caller:
            caller.publish(REQUEST, chat(id="b", stream=True), ResponseTopic="caller/big")
            *deltas, error = caller.until("error")
            assert "".join(message["text"] for message in deltas) == "é" * 3000
            assert error["error"]["code"] == "reply_too_large"
            caller.publish(REQUEST, chat(id="b2"), ResponseTopic="caller/big")
            assert caller.next()["error"]["code"] == "reply_too_large"
