"""Requests and answers, through a real mosquitto."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from edgekit.daemon.mqtt.door import MqttDoor
from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.request import ChatRequest, Delta, Failure
from edgekit.generation.scheduler import OnEvent
from tests.broker import Broker, Caller, tool
from tests.daemon.mqtt.conftest import CANCEL, REQUEST, MakeDoor, chat, eventually
from tests.daemon.mqtt.scripted import WORDS, Playing, ScriptedScheduler, finish, speak, wait_for_cancel

pytestmark = pytest.mark.broker

ANSWER = "".join(WORDS)


def test_a_request_with_response_topic_and_correlation_data_gets_exactly_one_answer(
    broker: Broker, door: MqttDoor
) -> None:
    with Caller(broker.port, "caller/1") as caller:
        caller.publish(REQUEST, chat(), ResponseTopic="caller/1", CorrelationData=b"\x00\xffbin")
        message = caller.message()
        answer = json.loads(message.payload)
        assert caller.property(message, "CorrelationData") == b"\x00\xffbin"
        assert caller.property(message, "ContentType") == "application/json"
        assert message.qos == 1
        assert not message.retain
        assert answer.pop("id")
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
                "completion_tokens_details": {"accepted_prediction_tokens": 2, "rejected_prediction_tokens": 1},
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
    assert door.counters.requests == door.counters.answered == 1


def test_mosquitto_rr_prints_the_answer(broker: Broker, door: MqttDoor) -> None:
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
    assert door.counters.answered == 1


@pytest.mark.usefixtures("door")
def test_a_caller_that_speaks_mqtt_3_names_its_reply_topic_and_id_in_the_payload(broker: Broker) -> None:
    with Caller(broker.port, "caller/old", version=3) as caller:
        caller.publish(REQUEST, chat(reply_to="caller/old", id="nr-7"))
        answer = caller.next()
    assert (answer["type"], answer["id"], answer["message"]["content"]) == ("final", "nr-7", ANSWER)


@pytest.mark.parametrize("qos", [0, 1])
def test_deltas_are_numbered_without_a_gap_and_join_to_the_final_text(
    broker: Broker, make_door: MakeDoor, scheduler: ScriptedScheduler, qos: int
) -> None:
    def at_leisure(playing: Playing) -> None:
        for seq in range(200):
            playing.on_event(Delta(seq, WORDS[seq % len(WORDS)]))
            playing.cancelled.wait(0.002)
        playing.on_event(finish())

    scheduler.script = at_leisure
    make_door(coalesce_ms=20)
    with Caller(broker.port, "caller/s", qos=qos) as caller:
        caller.publish(REQUEST, chat(stream=True, id="s"), ResponseTopic="caller/s", CorrelationData=b"c")
        *deltas, final = caller.until("final")
    assert {message["type"] for message in deltas} == {"delta"}
    assert [message["seq"] for message in deltas] == list(range(len(deltas)))
    assert final["seq"] == len(deltas)
    assert 3 < len(deltas) < 60, "200 pieces over 0.4 s, gathered over 20 ms each"
    assert "".join(message["text"] for message in deltas) == final["message"]["content"] == ANSWER * 25
    assert {message["id"] for message in [*deltas, final]} == {"s"}


@pytest.mark.usefixtures("door")
def test_a_long_answer_that_comes_all_at_once_is_still_whole(broker: Broker, scheduler: Any) -> None:
    piece = "äöü" * 10_000

    def burst(playing: Playing) -> None:
        for seq in range(3):
            playing.on_event(Delta(seq, piece))
        playing.on_event(finish())

    scheduler.script = burst
    with Caller(broker.port, "caller/l") as caller:
        caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/l")
        *deltas, final = caller.until("final")
    assert [message["seq"] for message in deltas] == list(range(len(deltas)))
    assert "".join(message["text"] for message in deltas) == final["message"]["content"] == piece * 3


@pytest.mark.usefixtures("door")
def test_many_callers_at_once_each_get_their_own_answers(broker: Broker, scheduler: ScriptedScheduler) -> None:
    def echo(playing: Playing) -> None:
        playing.on_event(Delta(0, playing.request.messages[0].content))
        playing.on_event(finish())

    scheduler.script = echo
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


@pytest.mark.usefixtures("door")
def test_the_scheduler_sees_the_response_topic_as_the_client(broker: Broker, scheduler: ScriptedScheduler) -> None:
    with Caller(broker.port, "caller/who") as caller:
        caller.publish(REQUEST, chat(id="x", temperature=0, max_tokens=3), ResponseTopic="caller/who")
        caller.next()
    request = scheduler.played[0].request
    assert (request.client, request.id, request.max_tokens) == ("caller/who", "x", 3)
    assert request.sampling.temperature == 0
    assert request.deadline_s is None


def test_what_is_left_of_the_message_expiry_becomes_the_deadline(
    broker: Broker, make_door: MakeDoor, scheduler: ScriptedScheduler
) -> None:
    make_door().stop()
    with Caller(broker.port, "caller/e") as caller:
        caller.publish(REQUEST, chat(), ResponseTopic="caller/e", MessageExpiryInterval=60)
        caller.publish(REQUEST, chat(deadline_s=5), ResponseTopic="caller/e", MessageExpiryInterval=60)
        assert caller.silent(1.1), "the door is away; the broker holds the requests"
        make_door()
        caller.next()
        caller.next()
    first, second = (playing.request.deadline_s for playing in scheduler.played)
    assert first is not None
    assert 50 < first < 60
    assert second == 5


@pytest.mark.usefixtures("door")
def test_a_deadline_that_has_passed_is_an_error_of_its_own(broker: Broker) -> None:
    with Caller(broker.port, "caller/d") as caller:
        caller.publish(REQUEST, chat(deadline_s=0, id="late"), ResponseTopic="caller/d")
        assert caller.next()["error"]["code"] == "deadline_exceeded"


@pytest.mark.usefixtures("door")
def test_a_failure_of_the_scheduler_reaches_the_caller_with_code_hint_and_correlation(
    broker: Broker, scheduler: ScriptedScheduler
) -> None:
    def fail(playing: Playing) -> None:
        playing.on_event(Delta(0, "Par"))
        playing.on_event(Failure(EdgekitError("the runner broke", hint="look at the log", code="runner_failed")))

    scheduler.script = fail
    with Caller(broker.port, "caller/f") as caller:
        caller.publish(REQUEST, chat(id="f", stream=True), ResponseTopic="caller/f", CorrelationData=b"k")
        assert caller.next()["text"] == "Par"
        message = caller.message()
    answer = json.loads(message.payload)
    assert caller.property(message, "CorrelationData") == b"k"
    assert (answer["type"], answer["id"]) == ("error", "f")
    assert answer["error"]["code"] == "runner_failed"
    assert answer["error"]["hint"] == "look at the log"


class Full(ScriptedScheduler):
    def submit(self, request: ChatRequest, on_event: OnEvent) -> Playing:  # noqa: ARG002 - the seam's signature
        raise RequestError("the queue is full", code="overloaded", retry_after_s=2.5)


@pytest.mark.parametrize("scheduler", [Full()])
@pytest.mark.usefixtures("door")
def test_a_full_queue_is_answered_with_the_time_after_which_to_ask_again(broker: Broker) -> None:
    with Caller(broker.port, "caller/o") as caller:
        caller.publish(REQUEST, chat(), ResponseTopic="caller/o")
        error = caller.next()["error"]
    assert (error["code"], error["retry_after_s"]) == ("overloaded", 2.5)


@pytest.mark.parametrize(
    ("payload", "code", "param"),
    [
        (b"", "invalid_request", None),
        (b"{", "invalid_request", None),
        (b'{"messages": [\xff]}', "invalid_request", None),
        (b"[" * 100_000, "invalid_request", None),
        (b'{"messages": NaN}', "invalid_request", None),
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
        (json.dumps({"prompt": [1]}).encode(), "unsupported_parameter", "prompt"),
        (json.dumps(chat(model="gpt-4o")).encode(), "model_not_found", "model"),
        (json.dumps(chat(user="x" * 5000)).encode(), "body_too_large", None),
    ],
)
def test_a_bad_payload_is_answered_with_one_error_that_names_it(  # noqa: PLR0917 - fixtures and parameters
    broker: Broker, make_door: MakeDoor, scheduler: ScriptedScheduler, payload: bytes, code: str, param: str | None
) -> None:
    door = make_door(max_payload_bytes=4096 if code == "body_too_large" else 1_000_000)
    with Caller(broker.port, "caller/bad") as caller:
        caller.publish(REQUEST, payload, ResponseTopic="caller/bad", CorrelationData=b"bad")
        message = caller.message()
        assert caller.silent(0.1)
    error = json.loads(message.payload)["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    assert "\n" not in error["message"]
    assert caller.property(message, "CorrelationData") == b"bad"
    assert scheduler.played == []
    assert door.counters.errors == 1


@pytest.mark.parametrize(
    "topic",
    ["a/+/b", "a/#", "$SYS/broker", "edgekit/other/chat/request", "edgekit", "a\x07b", "t" * 513, "", None, 5],
)
def test_a_response_topic_that_could_do_harm_is_refused_and_noted(
    broker: Broker, door: MqttDoor, scheduler: ScriptedScheduler, topic: object
) -> None:
    with Caller(broker.port, "#", version=3) as caller:
        caller.publish(REQUEST, chat(reply_to=topic, id="h"))
        seen = [caller.message() for _ in range(4)]
        assert caller.silent(0.2)
    by_topic = {message.topic: message for message in seen}
    assert set(by_topic) == {REQUEST, "edgekit/box/chat/refused", "edgekit/box/status", "edgekit/box/info"}
    note = json.loads(by_topic["edgekit/box/chat/refused"].payload)
    assert (note["type"], note["id"], note["error"]["code"]) == ("refused", "h", "reply_topic_refused")
    assert scheduler.played == []
    assert door.counters.refused == 1


def test_with_reply_prefixes_only_topics_below_them_get_answers(
    broker: Broker, make_door: MakeDoor, scheduler: ScriptedScheduler
) -> None:
    door = make_door(reply_prefixes=("replies/a", "replies/b/"))
    with Caller(broker.port, "replies/#") as caller:
        for topic in ("replies/a/1", "replies/b/2"):
            caller.publish(REQUEST, chat(), ResponseTopic=topic)
            assert caller.message().topic == topic
        for topic in ("replies/ab", "replies", "other/replies/a"):
            caller.publish(REQUEST, chat(), ResponseTopic=topic)
        assert eventually(lambda: door.counters.refused == 3)
    assert len(scheduler.played) == 2


def test_a_retained_request_is_not_a_request(broker: Broker, make_door: MakeDoor, scheduler: ScriptedScheduler) -> None:
    with Caller(broker.port, "caller/r") as caller:
        caller.publish(REQUEST, chat(), retain=True, ResponseTopic="caller/r")
        make_door()
        assert caller.silent()
    assert scheduler.played == []


def test_a_repeated_id_is_not_started_twice_while_it_runs(
    broker: Broker, door: MqttDoor, scheduler: ScriptedScheduler
) -> None:
    gate = threading.Event()

    def gated(playing: Playing) -> None:
        gate.wait(10)
        speak(playing)

    scheduler.script = gated
    with Caller(broker.port, "caller/dup") as caller:
        caller.publish(REQUEST, chat(id="one"), ResponseTopic="caller/dup", CorrelationData=b"first")
        caller.publish(REQUEST, chat(id="one"), ResponseTopic="caller/dup", CorrelationData=b"second")
        assert eventually(lambda: door.counters.repeated == 1)
        gate.set()
        message = caller.message()
        assert caller.silent()
    assert caller.property(message, "CorrelationData") == b"second"
    assert len(scheduler.played) == 1


@pytest.mark.usefixtures("door")
def test_a_repeated_id_is_answered_again_from_the_record(broker: Broker, scheduler: ScriptedScheduler) -> None:
    with Caller(broker.port, "caller/again") as caller:
        caller.publish(REQUEST, chat(id="one"), ResponseTopic="caller/again", CorrelationData=b"1")
        first = caller.message()
        caller.publish(REQUEST, chat(id="one", deadline_s=9), ResponseTopic="caller/again", CorrelationData=b"2")
        second = caller.message()
    assert first.payload == second.payload
    assert caller.property(second, "CorrelationData") == b"2"
    assert len(scheduler.played) == 1


@pytest.mark.usefixtures("door")
def test_an_id_used_again_for_another_question_is_a_new_request(broker: Broker, scheduler: ScriptedScheduler) -> None:
    with Caller(broker.port, "caller/reuse") as caller:
        for seed in (1, 2):
            caller.publish(REQUEST, chat(id="one", seed=seed), ResponseTopic="caller/reuse")
            assert caller.next()["type"] == "final"
    assert [playing.request.sampling.seed for playing in scheduler.played] == [1, 2]


@pytest.mark.usefixtures("door")
def test_an_id_under_way_cannot_be_used_for_another_question(broker: Broker, scheduler: ScriptedScheduler) -> None:
    scheduler.script = wait_for_cancel
    with Caller(broker.port, "caller/clash") as caller:
        caller.publish(REQUEST, chat(id="one", seed=1), ResponseTopic="caller/clash")
        caller.publish(REQUEST, chat(id="one", seed=2), ResponseTopic="caller/clash")
        assert caller.next()["error"]["code"] == "id_in_use"


def test_a_cancellation_ends_the_answer_with_what_there_is(
    broker: Broker, door: MqttDoor, scheduler: ScriptedScheduler
) -> None:
    scheduler.script = wait_for_cancel
    with Caller(broker.port, "caller/c") as caller:
        caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/c", CorrelationData=b"\x01")
        first = caller.next()
        caller.publish(CANCEL, b"", ResponseTopic="caller/c", CorrelationData=b"\x01")
        *deltas, final = caller.until("final")
    assert final["finish_reason"] == "cancelled"
    assert final["message"]["content"] == "".join(message["text"] for message in [first, *deltas])
    assert len(deltas) < 50
    assert door.counters.cancelled == 1


@pytest.mark.usefixtures("door")
def test_a_caller_that_speaks_mqtt_3_can_cancel_too(broker: Broker, scheduler: ScriptedScheduler) -> None:
    scheduler.script = wait_for_cancel
    with Caller(broker.port, "caller/c3", version=3) as caller:
        caller.publish(REQUEST, chat(id="7", reply_to="caller/c3"))
        caller.publish(CANCEL, {"id": "7", "reply_to": "caller/c3"})
        assert caller.next()["finish_reason"] == "cancelled"


def test_one_caller_cannot_cancel_another_ones_request(
    broker: Broker, door: MqttDoor, scheduler: ScriptedScheduler
) -> None:
    scheduler.script = wait_for_cancel
    with Caller(broker.port, "caller/mine") as caller:
        caller.publish(REQUEST, chat(id="same"), ResponseTopic="caller/mine")
        caller.publish(CANCEL, {"id": "same"}, ResponseTopic="caller/theirs")
        caller.publish(CANCEL, {"id": "same"})
        caller.publish(CANCEL, b"nonsense", ResponseTopic="caller/mine")
        assert caller.silent()
    assert door.counters.cancelled == 0
    assert not scheduler.played[0].cancelled.is_set()


def test_a_streamed_answer_that_nobody_listens_to_is_cancelled(
    broker: Broker, door: MqttDoor, scheduler: ScriptedScheduler
) -> None:
    scheduler.script = wait_for_cancel
    with Caller(broker.port) as caller:
        caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/gone")
        assert eventually(lambda: bool(scheduler.played) and scheduler.played[0].cancelled.is_set(), 5)
    assert door.counters.unheard == 1


def test_an_answer_larger_than_the_brokers_packets_is_replaced_by_an_error(
    tmp_path: Path, make_door: MakeDoor, scheduler: ScriptedScheduler
) -> None:
    def long(playing: Playing) -> None:
        playing.on_event(Delta(0, "é" * 3000))
        playing.on_event(finish())

    scheduler.script = long
    folder = tmp_path / "small"
    folder.mkdir()
    with Broker(folder, config=("allow_anonymous true", "max_packet_size 2000")) as small:
        make_door(port=small.port)
        with Caller(small.port, "caller/big") as caller:
            caller.publish(REQUEST, chat(id="b", stream=True), ResponseTopic="caller/big")
            *deltas, error = caller.until("error")
            assert "".join(message["text"] for message in deltas) == "é" * 3000
            assert error["error"]["code"] == "reply_too_large"
            caller.publish(REQUEST, chat(id="b2"), ResponseTopic="caller/big")
            assert caller.next()["error"]["code"] == "reply_too_large"


class Exploding(ScriptedScheduler):
    """Breaks in a way that no contract foresees."""

    def submit(self, request: ChatRequest, on_event: OnEvent) -> Playing:
        if request.max_tokens == 13:
            raise ZeroDivisionError
        return super().submit(request, on_event)


@pytest.mark.parametrize("scheduler", [Exploding()])
def test_an_unforeseen_error_is_answered_and_leaves_the_door_working(broker: Broker, door: MqttDoor) -> None:
    with Caller(broker.port, "caller/x") as caller:
        caller.publish(REQUEST, chat(max_tokens=13), ResponseTopic="caller/x")
        assert caller.next()["error"]["code"] == "internal_error"
        caller.publish(REQUEST, chat(), ResponseTopic="caller/x")
        assert caller.next()["type"] == "final"
    assert door.connections == 1
