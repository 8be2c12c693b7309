"""Messages that a broker does not take, through a real mosquitto with a limit that it does not announce."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.daemon.mqtt import connection
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.daemon.mqtt.service import MqttService
from edgekit.daemon.mqtt.suspects import MAX_LOSSES, Suspects
from edgekit.generation.types import Delta
from tests.broker import Broker, Caller
from tests.daemon.mqtt.conftest import REQUEST, STATUS, MakeService, chat, eventually
from tests.daemon.mqtt.scripted import WORDS, Playing, ScriptedWorker, finish, speak

LIMIT = 700


def speak_at_length(playing: Playing) -> None:
    """Answer with 1,000 characters, or briefly if few tokens are asked for."""
    if playing.request.max_tokens == 1:
        speak(playing)
        return
    for seq in range(200):
        playing.on_event(Delta(seq, "word "))
    playing.on_event(finish())


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BACKOFF_FIRST_S", 0.05)
    monkeypatch.setattr(connection, "BACKOFF_MAX_S", 0.2)


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Broker]:
    folder = tmp_path / "strict"
    folder.mkdir()
    with Broker(folder, config=("allow_anonymous true", f"message_size_limit {LIMIT}")) as broker:
        yield broker


@pytest.fixture
def limited(strict: Broker, make_service: MakeService, worker: ScriptedWorker) -> Iterator[MqttService]:
    worker.script = speak_at_length
    service = make_service(port=strict.port)
    yield service
    service.stop()


@pytest.mark.broker
def test_an_answer_that_the_broker_does_not_take_is_replaced_by_an_error_after_three_connections(
    strict: Broker, limited: MqttService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with Caller(strict.port, "caller/long") as caller:
        caller.publish(REQUEST, chat(id="long"), ResponseTopic="caller/long")
        error = caller.next(20)
        assert (error["type"], error["id"], error["error"]["code"]) == ("error", "long", "reply_too_large")
        assert limited.stats().reconnects == MAX_LOSSES
        assert limited.stats().dropped == 1
        # The next ones break no connection.
        for stream in (False, True):
            caller.publish(REQUEST, chat(id=f"again-{stream}", stream=stream), ResponseTopic="caller/long")
            *deltas, error = caller.until("error", 20)
            assert error["error"]["code"] == "reply_too_large"
            assert "".join(delta["text"] for delta in deltas) == ("word " * 200 if stream else "")
        assert caller.silent()
    assert limited.stats().reconnects == MAX_LOSSES
    assert "replaced by an error" in caplog.text
    assert "mqtt.device_id" not in caplog.text, "the network and other clients are not suspected"


@pytest.mark.broker
def test_answers_that_are_replaced_or_dropped_are_no_longer_under_suspicion(
    strict: Broker, limited: MqttService, worker: ScriptedWorker
) -> None:
    """A later message may be at the same place in memory."""
    together = threading.Barrier(6)

    def wait_and_speak(playing: Playing) -> None:
        together.wait(20)
        speak_at_length(playing)

    worker.script = wait_and_speak
    suspects = limited._connection._suspects
    with Caller(strict.port, "caller/several") as caller:
        for number in range(6):
            caller.publish(REQUEST, chat(id=str(number), stream=number % 2 == 1), ResponseTopic="caller/several")
        answered: set[str] = set()
        while len(answered) < 6:
            message = caller.next(20)
            if message["type"] == "error":
                answered.add(message["id"])
    assert limited.stats().reconnects >= MAX_LOSSES, "no connection broke: nothing is tested"
    # The last connection may break after an error has left: what it took along is sent again.
    assert eventually(lambda: limited._connection.idle and len(suspects) == 0)


@pytest.mark.broker
def test_a_stream_whose_deltas_the_broker_does_not_take_goes_on_with_smaller_ones(
    strict: Broker, limited: MqttService
) -> None:
    with Caller(strict.port, "caller/s") as caller:
        caller.publish(REQUEST, chat(id="s", stream=True), ResponseTopic="caller/s")
        assert caller.until("error", 20)[-1]["error"]["code"] == "reply_too_large"
    assert limited.stats().reconnects <= 2 * MAX_LOSSES


@pytest.mark.broker
@pytest.mark.usefixtures("limited")
def test_another_callers_answer_passes_the_one_that_the_broker_does_not_take(
    strict: Broker, limited: MqttService
) -> None:
    with Caller(strict.port, "caller/long") as long, Caller(strict.port, "caller/short") as short:
        long.publish(REQUEST, chat(), ResponseTopic="caller/long")
        for number in range(20):
            short.publish(REQUEST, chat(max_tokens=1, id=str(number)), ResponseTopic="caller/short")
        answers = {(message := short.next(20))["id"]: message for _ in range(20)}
        assert {answer["message"]["content"] for answer in answers.values()} == {"".join(WORDS)}
        assert long.next(20)["error"]["code"] == "reply_too_large"
    assert limited.stats().dropped == 1, "only the one at fault is given up"


@pytest.mark.broker
def test_a_broker_that_does_not_take_the_info_message_is_served_without_it(
    tmp_path: Path, make_service: MakeService, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.script = speak_at_length
    # So that the limit is between the sizes of the two presence messages.
    monkeypatch.setattr("edgekit.daemon.mqtt.presence.__version__", "0.1.0")
    folder = tmp_path / "tiny"
    folder.mkdir()
    with Broker(folder, config=("allow_anonymous true", "message_size_limit 260")) as broker:
        service = make_service(port=broker.port)
        assert eventually(lambda: service.stats().reconnects == MAX_LOSSES)
        with Caller(broker.port, STATUS, "edgekit/box/info") as caller:
            # The Will Message of the connection before may still be the retained one.
            while caller.next(20)["state"] != "online":
                pass
            assert caller.silent(1.0)
        assert service.connected
        assert service.stats().reconnects == MAX_LOSSES
        service.stop()


def test_what_was_in_flight_beside_the_message_at_fault_is_not_given_up() -> None:
    suspects = Suspects()
    bystanders = [Outgoing("a", b"x" * size) for size in (10, 5000)]
    guilty = Outgoing("b", b"x" * 900)
    assert suspects.lost([bystanders[0], guilty, bystanders[1]], 0.0) == set()
    for message in bystanders:
        assert suspects.suspected(message)
        suspects.acknowledged(message, taken=True)
        assert not suspects.suspected(message)
    assert suspects.lost([guilty], 1.0) == set()
    assert suspects.lost([guilty], 2.0) == {id(guilty)}
    # Larger ones were taken: its size is not the reason.
    assert suspects.size_limit(3.0) == 0


def test_a_size_limit_that_was_inferred_ends_after_a_while() -> None:
    suspects = Suspects()
    guilty = Outgoing("b", b"x" * 900)
    for now in (0.0, 1.0, 2.0):
        suspects.lost([guilty], now)
    assert suspects.size_limit(3.0) == guilty.packet_bytes - 1
    assert suspects.size_limit(700.0) == 0
