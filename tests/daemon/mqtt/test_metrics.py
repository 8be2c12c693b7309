"""The metrics of the MQTT service, and the names of its model, through a real mosquitto."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from edgekit.config import MqttConfig
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.mqtt import connection
from edgekit.daemon.mqtt.service import MqttService
from tests.broker import Broker, Caller
from tests.daemon.mqtt.conftest import MODEL, REQUEST, chat, eventually
from tests.daemon.mqtt.scripted import Playing, Script, ScriptedWorker, speak, wait_for_cancel

pytestmark = pytest.mark.broker


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(autouse=True)
def running(
    broker: Broker, worker: ScriptedWorker, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MqttService]:
    monkeypatch.setattr(connection, "BACKOFF_FIRST_S", 0.05)
    monkeypatch.setattr(connection, "BACKOFF_MAX_S", 0.2)
    service = MqttService(MqttConfig(host="127.0.0.1", port=broker.port, device_id="box"), worker, MODEL, metrics)
    assert value(metrics, "connected") == 0
    service.start()
    assert eventually(lambda: value(metrics, "connected") == 1)
    yield service
    service.stop()
    assert value(metrics, "connected") == 0


def value(metrics: Metrics, name: str) -> float:
    """The value of an MQTT metric, as a scrape shows it."""
    lines = metrics.render()[0].decode().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith(f"edgekit_mqtt_{name} ")]
    return float(found)


def test_reconnects_are_counted_and_a_lost_connection_shows(broker: Broker, metrics: Metrics) -> None:
    assert value(metrics, "reconnects_total") == 0
    for count in (1, 2):
        broker.stop(signal.SIGKILL)
        assert eventually(lambda: value(metrics, "connected") == 0)
        broker.start()
        assert eventually(lambda: value(metrics, "connected") == 1)
        assert value(metrics, "reconnects_total") == count


def gated(gate: threading.Event) -> Script:
    """A script that speaks once the gate is open."""

    def play(playing: Playing) -> None:
        gate.wait(20)
        speak(playing)

    return play


def test_an_answer_is_unacknowledged_until_the_broker_acknowledges_it(
    broker: Broker, worker: ScriptedWorker, metrics: Metrics
) -> None:
    gate = threading.Event()
    worker.script = gated(gate)
    assert broker._process is not None
    with Caller(broker.port, "caller/1") as caller:
        caller.publish(REQUEST, chat(), ResponseTopic="caller/1")
        assert eventually(lambda: bool(worker.played))
        assert eventually(lambda: value(metrics, "unacknowledged_messages") == 0)
        broker._process.send_signal(signal.SIGSTOP)
        try:
            gate.set()
            assert eventually(lambda: value(metrics, "unacknowledged_messages") == 1)
        finally:
            broker._process.send_signal(signal.SIGCONT)
        assert caller.next()["type"] == "final"
        assert eventually(lambda: value(metrics, "unacknowledged_messages") == 0)
    assert value(metrics, "dropped_messages_total") == 0


@pytest.mark.parametrize("limit", [("MAX_OUTBOX", 1), ("MAX_OUTBOX_BYTES", 1000)])
def test_while_the_broker_is_away_answers_are_kept_and_deltas_that_do_not_fit_are_counted_as_dropped(
    broker: Broker,
    worker: ScriptedWorker,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    limit: tuple[str, int],
) -> None:
    gate = threading.Event()
    worker.script = gated(gate)
    with Caller(broker.port) as caller:
        for number in range(3):
            caller.publish(REQUEST, chat(id=str(number), stream=True), ResponseTopic="caller/2")
        assert eventually(lambda: len(worker.played) == 3)
    broker.stop(signal.SIGKILL)
    assert eventually(lambda: value(metrics, "connected") == 0)
    with monkeypatch.context() as patch:
        patch.setattr(connection, *limit)
        gate.set()
        assert eventually(lambda: value(metrics, "outbox_replies") == 3)
        assert value(metrics, "inbox_requests") == 0
        dropped = value(metrics, "dropped_messages_total")
        assert dropped >= 2
    broker.start()
    assert eventually(lambda: value(metrics, "outbox_replies") == 0)
    assert value(metrics, "dropped_messages_total") == dropped


def test_a_repeated_request_is_counted_whether_the_first_one_runs_or_is_answered(
    broker: Broker, worker: ScriptedWorker, metrics: Metrics
) -> None:
    gate = threading.Event()
    worker.script = gated(gate)
    with Caller(broker.port, "caller/3") as caller:
        for _ in range(2):
            caller.publish(REQUEST, chat(id="one"), ResponseTopic="caller/3")
        assert eventually(lambda: value(metrics, "repeated_requests_total") == 1)
        gate.set()
        assert caller.next()["type"] == "final"
        caller.publish(REQUEST, chat(id="one"), ResponseTopic="caller/3")
        assert caller.next()["type"] == "final"
    assert value(metrics, "repeated_requests_total") == 2


def test_a_stream_without_subscribers_is_counted(broker: Broker, worker: ScriptedWorker, metrics: Metrics) -> None:
    worker.script = wait_for_cancel
    with Caller(broker.port) as caller:
        caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/gone")
        assert eventually(lambda: value(metrics, "no_subscribers_total") == 1)


def test_the_model_is_named_as_over_http_with_or_without_latest(broker: Broker) -> None:
    with Caller(broker.port, "caller/4") as caller:
        for name in (MODEL.name, f"{MODEL.name}:latest"):
            caller.publish(REQUEST, chat(model=name), ResponseTopic="caller/4")
            answer = caller.next()
            assert (answer["type"], answer["model"]) == ("final", MODEL.name)
        caller.publish(REQUEST, chat(model=f"{MODEL.name}:8b"), ResponseTopic="caller/4")
        assert caller.next()["error"]["code"] == "model_not_found"
