"""Requests and answers, through a real mosquitto."""

from __future__ import annotations

import json
import subprocess
import threading
import time

import pytest

from edgekit.daemon.mqtt.connection import Connection
from edgekit.daemon.mqtt.service import MqttService
from edgekit.errors import EdgekitError
from edgekit.generation.engine.worker import OnEvent
from edgekit.generation.types import ChatRequest, Delta, Failure
from tests.broker import Broker, Caller, tool
from tests.daemon.mqtt.conftest import CANCEL, REQUEST, MakeService, chat, eventually, outcomes
from tests.daemon.mqtt.scripted import WORDS, Playing, ScriptedWorker, finish, speak, wait_for_cancel

pytestmark = pytest.mark.broker

ANSWER = "".join(WORDS)


def test_a_request_with_response_topic_and_correlation_data_gets_exactly_one_answer(
    broker: Broker, service: MqttService
) -> None:
    now_ms = time.time_ns() // 1_000_000
    with Caller(broker.port, "caller/1") as caller:
        caller.publish(REQUEST, chat(), ResponseTopic="caller/1", CorrelationData=b"\x00\xffbin")
        message = caller.message()
        answer = json.loads(message.payload)
        assert caller.property(message, "CorrelationData") == b"\x00\xffbin"
        assert caller.property(message, "ContentType") == "application/json"
        assert message.qos == 1
        assert not message.retain
        assert answer.pop("id")
        # From the clock, when the service was started.
        assert now_ms - 60_000 < answer.pop("attempt") < now_ms + 60_000
        assert answer == {
            "type": "final",
            "seq": 0,
            "message": {"role": "assistant", "content": ANSWER},
            "finish_reason": "stop",
            "model": "tiny-instruct",
            "usage": {
                "prompt_tokens": 11,
                "completion_tokens": 8,
                "total_tokens": 19,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {
                    "reasoning_tokens": 0,
                    "accepted_prediction_tokens": 2,
                    "rejected_prediction_tokens": 1,
                },
            },
            "timings": {
                "queue_s": 0.25,
                "prefill_s": 0.5,
                "decode_s": 1.0,
                "first_token_s": 0.75,
                "slowest_token_s": 0.5,
                "prompt_tokens_per_s": 14.0,
                "decode_tokens_per_s": 7.0,
                "steps": 5,
                "cached_tokens": 4,
                "drafted_tokens": 3,
                "accepted_tokens": 2,
                "kv_bytes": 4096,
                "left_out_messages": 6,
            },
        }
        assert caller.silent()
    assert outcomes(service) == {"stop": 1}


def test_mosquitto_rr_prints_the_answer(broker: Broker, service: MqttService) -> None:
    done = subprocess.run(
        [
            tool("mosquitto_rr"),
            *("-h", "127.0.0.1", "-p", str(broker.port), "-W", "10", "-q", "1"),
            *("-t", REQUEST, "-e", "caller/rr", "-m", json.dumps(chat())),
        ],
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["message"]["content"] == ANSWER
    assert outcomes(service) == {"stop": 1}


@pytest.mark.usefixtures("service")
def test_an_mqtt_3_caller_sets_reply_topic_and_id_in_the_payload(broker: Broker) -> None:
    with Caller(broker.port, "caller/old", version=3) as caller:
        caller.publish(REQUEST, chat(reply_to="caller/old", id="nr-7"))
        answer = caller.next()
    assert (answer["type"], answer["id"], answer["message"]["content"]) == ("final", "nr-7", ANSWER)


@pytest.mark.usefixtures("service")
def test_many_callers_at_once_each_get_their_own_answers(broker: Broker, worker: ScriptedWorker) -> None:
    def echo(playing: Playing) -> None:
        playing.on_event(Delta(0, playing.request.messages[0].content))
        playing.on_event(finish())

    worker.script = echo
    with Caller(broker.port, "many/+") as caller:
        for number in range(60):
            body = {"messages": [{"role": "user", "content": f"say {number}"}]}
            caller.publish(REQUEST, body, ResponseTopic=f"many/{number}", CorrelationData=str(number).encode())
        got = {}
        for _ in range(60):
            message = caller.message()
            got[message.topic] = (
                json.loads(message.payload)["message"]["content"],
                caller.property(message, "CorrelationData"),
            )
    assert got == {f"many/{number}": (f"say {number}", str(number).encode()) for number in range(60)}


@pytest.mark.usefixtures("service")
def test_the_response_topic_is_the_client_of_the_request(broker: Broker, worker: ScriptedWorker) -> None:
    with Caller(broker.port, "caller/who") as caller:
        caller.publish(REQUEST, chat(id="x", temperature=0, max_tokens=3), ResponseTopic="caller/who")
        caller.next()
    request = worker.played[0].request
    assert (request.client, request.id, request.max_tokens) == ("caller/who", "x", 3)
    assert request.sampling.temperature == 0
    assert request.deadline_s is None


def test_the_remaining_message_expiry_becomes_the_deadline(
    broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    make_service().stop()
    with Caller(broker.port, "caller/e") as caller:
        caller.publish(REQUEST, chat(), ResponseTopic="caller/e", MessageExpiryInterval=60)
        caller.publish(REQUEST, chat(deadline_s=5), ResponseTopic="caller/e", MessageExpiryInterval=60)
        assert caller.silent(1.1), "the service is offline; the broker keeps the requests"
        make_service()
        caller.next()
        caller.next()
    first, second = (playing.request.deadline_s for playing in worker.played)
    assert first is not None
    assert 50 < first < 60
    assert second == 5


@pytest.mark.usefixtures("service")
def test_a_deadline_that_has_passed_has_its_own_error_code(broker: Broker) -> None:
    with Caller(broker.port, "caller/d") as caller:
        caller.publish(REQUEST, chat(deadline_s=0, id="late"), ResponseTopic="caller/d")
        assert caller.next()["error"]["code"] == "deadline_exceeded"


@pytest.mark.usefixtures("service")
def test_a_failure_of_the_worker_reaches_the_caller_with_code_hint_and_correlation(
    broker: Broker, worker: ScriptedWorker
) -> None:
    def fail(playing: Playing) -> None:
        playing.on_event(Delta(0, "Par"))
        playing.on_event(Failure(EdgekitError("the runner broke", hint="look at the log", code="runner_failed")))

    worker.script = fail
    with Caller(broker.port, "caller/f") as caller:
        caller.publish(REQUEST, chat(id="f", stream=True), ResponseTopic="caller/f", CorrelationData=b"k")
        assert caller.next()["text"] == "Par"
        message = caller.message()
    answer = json.loads(message.payload)
    assert caller.property(message, "CorrelationData") == b"k"
    assert (answer["type"], answer["id"]) == ("error", "f")
    assert answer["error"]["code"] == "runner_failed"
    assert answer["error"]["hint"] == "look at the log"


@pytest.mark.parametrize(
    ("payload", "code", "param"),
    [
        (b"", "invalid_request", None),
        (b"{", "invalid_request", None),
        (b'{"messages": [\xff]}', "invalid_request", None),
        (b"[" * 100_000, "invalid_request", None),
        (b'{"messages": NaN}', "invalid_request", "messages"),
        (b"[]", "invalid_request", None),
        (b"{}", "invalid_request", "messages"),
        (b'{"messages": []}', "invalid_request", "messages"),
        (json.dumps(chat(id=7)).encode(), "invalid_request", "id"),
        (json.dumps(chat(id="")).encode(), "invalid_request", "id"),
        (json.dumps(chat(id="x" * 129)).encode(), "invalid_request", "id"),
        (b'{"id": "\\ud800", "messages": []}', "invalid_request", "id"),
        (json.dumps(chat(deadline_s="soon")).encode(), "invalid_request", "deadline_s"),
        (json.dumps(chat(deadline_s=10**400)).encode(), "invalid_request", "deadline_s"),
        (json.dumps(chat(temperature=9)).encode(), "invalid_request", "temperature"),
        (json.dumps(chat(tools=[{}])).encode(), "invalid_request", "tools[0].function"),
        (json.dumps(chat(audio={"voice": "x"})).encode(), "unsupported_parameter", "audio"),
        (json.dumps(chat(prompt="Once")).encode(), "unsupported_parameter", "prompt"),
        (json.dumps({"prompt": [[1], [2]]}).encode(), "unsupported_parameter", "prompt"),
        (json.dumps({"prompt": [1, "a"]}).encode(), "invalid_request", "prompt[1]"),
        (json.dumps(chat(model="gpt-4o")).encode(), "model_not_found", "model"),
        (json.dumps(chat(user="x" * 5000)).encode(), "body_too_large", None),
    ],
)
def test_a_bad_payload_is_answered_with_one_error(  # noqa: PLR0917 - fixtures and parameters
    broker: Broker, make_service: MakeService, worker: ScriptedWorker, payload: bytes, code: str, param: str | None
) -> None:
    service = make_service(max_payload_bytes=4096 if code == "body_too_large" else 1_000_000)
    with Caller(broker.port, "caller/bad") as caller:
        caller.publish(REQUEST, payload, ResponseTopic="caller/bad", CorrelationData=b"bad")
        message = caller.message()
        assert caller.silent(0.1)
    error = json.loads(message.payload)["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    assert "\n" not in error["message"]
    assert caller.property(message, "CorrelationData") == b"bad"
    assert worker.played == []
    assert outcomes(service) == {code: 1}


@pytest.mark.parametrize(
    "topic",
    ["a/+/b", "a/#", "$SYS/broker", "edgekit/other/chat/request", "edgekit", "a\x07b", "t" * 513, "", None, 5],
)
def test_a_harmful_response_topic_is_refused_and_reported(
    broker: Broker, service: MqttService, worker: ScriptedWorker, topic: object
) -> None:
    with Caller(broker.port, "#", version=3) as caller:
        caller.publish(REQUEST, chat(reply_to=topic, id="h"))
        seen = [caller.message() for _ in range(4)]
        assert caller.silent(0.2)
    by_topic = {message.topic: message for message in seen}
    assert set(by_topic) == {REQUEST, "edgekit/box/chat/refused", "edgekit/box/status", "edgekit/box/info"}
    report = json.loads(by_topic["edgekit/box/chat/refused"].payload)
    assert (report["type"], report["id"], report["error"]["code"]) == ("refused", "h", "reply_topic_refused")
    assert worker.played == []
    assert outcomes(service) == {"reply_topic_refused": 1}


def test_with_reply_prefixes_only_topics_below_them_get_answers(
    broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    service = make_service(reply_prefixes=("replies/a", "replies/b/"))
    with Caller(broker.port, "replies/#") as caller:
        for topic in ("replies/a/1", "replies/b/2"):
            caller.publish(REQUEST, chat(), ResponseTopic=topic)
            assert caller.message().topic == topic
        for topic in ("replies/ab", "replies", "other/replies/a"):
            caller.publish(REQUEST, chat(), ResponseTopic=topic)
        assert eventually(lambda: outcomes(service).get("reply_topic_refused") == 3)
    assert len(worker.played) == 2


def test_a_retained_request_is_not_a_request(broker: Broker, make_service: MakeService, worker: ScriptedWorker) -> None:
    with Caller(broker.port, "caller/r") as caller:
        caller.publish(REQUEST, chat(), retain=True, ResponseTopic="caller/r")
        make_service()
        assert caller.silent()
        # Nor is one that comes while the service is connected.
        caller.publish(REQUEST, chat(), retain=True, ResponseTopic="caller/r")
        assert caller.silent()
        # It does not stand in the way of another one.
        caller.publish(REQUEST, chat(), ResponseTopic="caller/r")
        assert caller.next()["type"] == "final"
    assert len(worker.played) == 1


def test_a_repeated_id_is_not_started_twice_while_it_runs(
    broker: Broker, service: MqttService, worker: ScriptedWorker
) -> None:
    gate = threading.Event()

    def gated(playing: Playing) -> None:
        gate.wait(10)
        speak(playing)

    worker.script = gated
    with Caller(broker.port, "caller/dup") as caller:
        caller.publish(REQUEST, chat(id="one"), ResponseTopic="caller/dup", CorrelationData=b"first")
        caller.publish(REQUEST, chat(id="one"), ResponseTopic="caller/dup", CorrelationData=b"second")
        assert eventually(lambda: service.stats().repeated == 1)
        gate.set()
        message = caller.message()
        assert caller.silent()
    assert caller.property(message, "CorrelationData") == b"second"
    assert len(worker.played) == 1


@pytest.mark.usefixtures("service")
def test_a_repeated_request_is_answered_from_the_cache(broker: Broker, worker: ScriptedWorker) -> None:
    with Caller(broker.port, "caller/again") as caller:
        caller.publish(REQUEST, chat(id="one"), ResponseTopic="caller/again", CorrelationData=b"1")
        first = caller.message()
        caller.publish(REQUEST, chat(id="one", deadline_s=9), ResponseTopic="caller/again", CorrelationData=b"2")
        second = caller.message()
    assert first.payload == second.payload
    assert caller.property(second, "CorrelationData") == b"2"
    assert len(worker.played) == 1


def test_a_request_repeated_before_its_answer_has_left_is_answered_once(
    broker: Broker, service: MqttService, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Caller(broker.port, "caller/early") as caller, monkeypatch.context() as closed:
        # As while a connection is lost, nothing leaves; the broker delivers the request again.
        closed.setattr(Connection, "_window", lambda _: 0)
        for _ in range(3):
            caller.publish(REQUEST, chat(id="one"), ResponseTopic="caller/early", CorrelationData=b"1")
            assert eventually(lambda: worker.played != [] and not service._jobs.open)
        assert eventually(lambda: service.stats().repeated == 2)
        # Another caller's number for it is an answer of its own.
        caller.publish(REQUEST, chat(id="one"), ResponseTopic="caller/early", CorrelationData=b"2")
        assert eventually(lambda: service.stats().repeated == 3)
        closed.undo()
        messages = [caller.message(), caller.message()]
        assert [caller.property(message, "CorrelationData") for message in messages] == [b"1", b"2"]
        assert messages[0].payload == messages[1].payload
        assert caller.silent()


@pytest.mark.usefixtures("service")
def test_an_id_reused_for_another_question_is_a_new_request(broker: Broker, worker: ScriptedWorker) -> None:
    with Caller(broker.port, "caller/reuse") as caller:
        for seed in (1, 2):
            caller.publish(REQUEST, chat(id="one", seed=seed), ResponseTopic="caller/reuse")
            assert caller.next()["type"] == "final"
    assert [playing.request.sampling.seed for playing in worker.played] == [1, 2]


@pytest.mark.usefixtures("service")
def test_an_id_in_use_is_refused_for_another_question(broker: Broker, worker: ScriptedWorker) -> None:
    worker.script = wait_for_cancel
    with Caller(broker.port, "caller/clash") as caller:
        caller.publish(REQUEST, chat(id="one", seed=1), ResponseTopic="caller/clash")
        caller.publish(REQUEST, chat(id="one", seed=2), ResponseTopic="caller/clash")
        assert caller.next()["error"]["code"] == "id_in_use"


def test_a_cancellation_ends_the_answer_with_the_text_so_far(
    broker: Broker, service: MqttService, worker: ScriptedWorker
) -> None:
    worker.script = wait_for_cancel
    with Caller(broker.port, "caller/c") as caller:
        caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/c", CorrelationData=b"\x01")
        first = caller.next()
        caller.publish(CANCEL, b"", ResponseTopic="caller/c", CorrelationData=b"\x01")
        *deltas, final = caller.until("final")
    assert final["finish_reason"] == "cancelled"
    assert final["message"]["content"] == "".join(message["text"] for message in [first, *deltas])
    assert len(deltas) < 50
    assert outcomes(service) == {"cancelled": 1}


@pytest.mark.usefixtures("service")
def test_an_mqtt_3_caller_can_cancel_too(broker: Broker, worker: ScriptedWorker) -> None:
    worker.script = wait_for_cancel
    with Caller(broker.port, "caller/c3", version=3) as caller:
        caller.publish(REQUEST, chat(id="7", reply_to="caller/c3"))
        caller.publish(CANCEL, {"id": "7", "reply_to": "caller/c3"})
        assert caller.next()["finish_reason"] == "cancelled"


def test_a_caller_cannot_cancel_the_request_of_another(
    broker: Broker, service: MqttService, worker: ScriptedWorker
) -> None:
    worker.script = wait_for_cancel
    with Caller(broker.port, "caller/mine") as caller:
        caller.publish(REQUEST, chat(id="same"), ResponseTopic="caller/mine")
        caller.publish(CANCEL, {"id": "same"}, ResponseTopic="caller/theirs")
        caller.publish(CANCEL, {"id": "same"})
        caller.publish(CANCEL, b"nonsense", ResponseTopic="caller/mine")
        assert caller.silent()
    assert outcomes(service) == {}
    assert not worker.played[0].cancelled.is_set()


def test_a_streamed_answer_without_subscribers_is_cancelled(
    broker: Broker, service: MqttService, worker: ScriptedWorker
) -> None:
    worker.script = wait_for_cancel
    with Caller(broker.port) as caller:
        caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/gone")
        assert eventually(lambda: bool(worker.played) and worker.played[0].cancelled.is_set(), 5)
    assert service.stats().no_subscribers == 1


class Exploding(ScriptedWorker):
    """Fails with an unexpected exception."""

    def submit(self, request: ChatRequest, on_event: OnEvent) -> Playing:
        if request.max_tokens == 13:
            raise ZeroDivisionError
        return super().submit(request, on_event)


@pytest.mark.parametrize("worker", [Exploding()])
def test_an_unexpected_error_is_answered_and_leaves_the_service_working(broker: Broker, service: MqttService) -> None:
    with Caller(broker.port, "caller/x") as caller:
        caller.publish(REQUEST, chat(max_tokens=13), ResponseTopic="caller/x")
        assert caller.next()["error"]["code"] == "internal_error"
        caller.publish(REQUEST, chat(), ResponseTopic="caller/x")
        assert caller.next()["type"] == "final"
    assert service.stats().reconnects == 0
