"""The MQTT service with the real engine worker and a small runner."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from edgekit.config import MqttConfig
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.mqtt.service import MqttService
from edgekit.generation.engine.worker import EngineWorker
from tests.broker import Broker, Caller
from tests.daemon.mqtt.conftest import CANCEL, REQUEST, chat, eventually
from tests.generation.filling import fill_model
from tests.generation.tiny import byte_tokenizer, echo_model

pytestmark = pytest.mark.broker

ANSWER = "Paris is the capital of France. 法国的首都 🗼 " * 4


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def real(broker: Broker, metrics: Metrics) -> Iterator[EngineWorker]:
    def unhurried(_: int) -> None:
        time.sleep(0.01)

    worker = EngineWorker(echo_model(ANSWER, before_step=unhurried), max_queue=2)
    config = MqttConfig(host="127.0.0.1", port=broker.port, device_id="box", coalesce_ms=10)
    service = MqttService(config, worker, worker.info, metrics)
    service.start()
    assert eventually(lambda: service.connected)
    yield worker
    worker.stop()
    service.stop()


@pytest.mark.usefixtures("real")
def test_a_streamed_answer_is_complete_and_counted(broker: Broker, metrics: Metrics) -> None:
    with Caller(broker.port, "caller/1") as caller:
        caller.publish(REQUEST, chat(stream=True, id="1"), ResponseTopic="caller/1")
        *deltas, final = caller.until("final")
    assert "".join(message["text"] for message in deltas) == final["message"]["content"] == ANSWER
    assert final["model"] == "echo"
    assert final["usage"]["completion_tokens"] >= len(ANSWER.encode())
    # Draft tokens save steps, but not those of the first of its four parts.
    assert final["timings"]["decode_s"] > 0.1
    assert 'edgekit_requests_total{outcome="stop",transport="mqtt"} 1.0' in metrics.render()[0].decode()


@pytest.mark.usefixtures("real")
def test_token_ids_are_continued_and_so_is_a_message_that_was_begun(broker: Broker) -> None:
    ids = byte_tokenizer().encode("<|im_start|>assistant\nParis")
    begun = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Paris"}]
    with Caller(broker.port, "caller/1") as caller:
        for number, fields in enumerate(
            ({"prompt": ids, "max_tokens": 8}, {"messages": begun, "continue_final_message": True, "max_tokens": 8})
        ):
            caller.publish(REQUEST, {**fields, "id": str(number)}, ResponseTopic="caller/1")
            assert caller.until("final")[-1]["message"]["content"] == " is the "
        caller.publish(REQUEST, {"prompt": ["a", "b"], "id": "2"}, ResponseTopic="caller/1")
        error = caller.until("error")[-1]["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "prompt")


def test_a_cancelled_request_frees_the_worker_at_once(broker: Broker, real: EngineWorker) -> None:
    with Caller(broker.port, "caller/2") as caller:
        caller.publish(REQUEST, chat(stream=True, id="2"), ResponseTopic="caller/2")
        caller.next()
        caller.publish(CANCEL, {"id": "2"}, ResponseTopic="caller/2")
        final = caller.until("final")[-1]
    assert final["finish_reason"] == "cancelled"
    assert ANSWER.startswith(final["message"]["content"])
    assert len(final["message"]["content"]) < len(ANSWER)
    assert real.queue_length() == 0


@pytest.mark.usefixtures("real")
def test_an_answer_that_takes_longer_than_the_deadline_fails(broker: Broker, metrics: Metrics) -> None:
    with Caller(broker.port, "caller/3") as caller:
        caller.publish(REQUEST, chat(deadline_s=0.1), ResponseTopic="caller/3", MessageExpiryInterval=50)
        assert caller.next()["error"]["code"] == "deadline_exceeded"
    assert 'outcome="deadline_exceeded",transport="mqtt"} 1.0' in metrics.render()[0].decode()


@pytest.mark.usefixtures("real")
def test_requests_wait_while_the_engines_queue_is_full(broker: Broker, metrics: Metrics) -> None:
    with Caller(broker.port, "caller/4") as caller:
        for number in range(6):
            caller.publish(REQUEST, chat(id=str(number), max_tokens=20), ResponseTopic="caller/4")
        got = [caller.next() for _ in range(6)]
    assert {(message["type"], message["id"]) for message in got} == {("final", str(number)) for number in range(6)}
    assert 'outcome="overloaded",transport="mqtt"' not in metrics.render()[0].decode()


def test_a_running_request_fails_with_shutting_down_when_the_daemon_stops(broker: Broker, real: EngineWorker) -> None:
    with Caller(broker.port, "caller/5") as caller:
        caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/5")
        caller.next()
        real.stop()
        assert caller.until("error")[-1]["error"]["code"] == "shutting_down"
        caller.publish(REQUEST, chat(), ResponseTopic="caller/5")
        assert caller.next()["error"]["code"] == "shutting_down"


@pytest.mark.usefixtures("real")
def test_a_chat_too_long_for_the_model_is_refused_with_both_numbers(broker: Broker) -> None:
    with Caller(broker.port, "caller/6") as caller:
        body = {"messages": [{"role": "user", "content": "x" * 5000}]}
        caller.publish(REQUEST, body, ResponseTopic="caller/6")
        error = caller.next()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "1024" in error["message"]


def test_a_gap_before_a_suffix_is_filled(broker: Broker, metrics: Metrics) -> None:
    worker = EngineWorker(fill_model("a + b<|file_sep|>other.py"))
    service = MqttService(MqttConfig(host="127.0.0.1", port=broker.port, device_id="box"), worker, worker.info, metrics)
    service.start()
    try:
        assert eventually(lambda: service.connected)
        with Caller(broker.port, "caller/9") as caller:
            body = {"prompt": "def add(a, b):\n    return ", "suffix": "\n", "max_tokens": 50}
            caller.publish(REQUEST, {**body, "id": "9"}, ResponseTopic="caller/9")
            *_, final = caller.until("final")
        assert (final["message"]["content"], final["finish_reason"]) == ("a + b", "stop")
    finally:
        worker.stop()
        service.stop()
