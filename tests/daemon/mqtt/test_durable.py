"""Requests that outlive the service, its limits and a full disk, through a real mosquitto."""

from __future__ import annotations

import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edgekit.daemon.mqtt import service as service_module
from edgekit.daemon.mqtt.service import MqttService
from edgekit.errors import EdgekitError, UnavailableError
from edgekit.generation.engine.worker import OnEvent
from edgekit.generation.types import ChatRequest, Delta, Failure
from tests.broker import Broker, Caller
from tests.daemon.mqtt.conftest import CANCEL, MODEL, REQUEST, MakeService, chat, eventually, outcomes
from tests.daemon.mqtt.scripted import Playing, ScriptedWorker, speak, wait_for_cancel

pytestmark = pytest.mark.broker


def deaf(playing: Playing) -> None:
    """Send no event, not even when cancelled."""
    playing.cancelled.wait(10)


def stored(state: Path, query: str) -> list[tuple[object, ...]]:
    """What is in the file of a service that has stopped."""
    with closing(sqlite3.connect(state / "mqtt" / "edgekit-box" / "requests.sqlite")) as file:
        return [*file.execute(query)]


def test_what_is_not_answered_when_the_daemon_stops_is_answered_after_the_next_start_with_the_same_seed(
    tmp_path: Path, broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    worker.script = deaf
    service = make_service(state=tmp_path)
    with Caller(broker.port, "replies/a") as caller:
        for number in range(14):  # more than begin
            body = chat(id=str(number), temperature=1)
            caller.publish(REQUEST, body, ResponseTopic="replies/a", CorrelationData=b"%d" % number)
        assert eventually(lambda: len(worker.played) == 10 and service.stats().unanswered == 14)
        service.stop()
        assert caller.silent(0.2), "neither cancelled nor refused"
        before = {playing.request.id: playing.request.sampling.seed for playing in worker.played}
        worker.played.clear()
        worker.script = speak
        make_service(state=tmp_path)
        answers = [caller.message() for _ in range(14)]
        assert {caller.property(message, "CorrelationData") for message in answers} == {
            b"%d" % number for number in range(14)
        }
    after = {playing.request.id: playing.request.sampling.seed for playing in worker.played}
    assert len(set(after.values())) == 14
    assert before.items() <= after.items()
    assert not worker.played[0].request.sampling.repeatable, "a drawn seed is no promise"


def test_an_answer_outlives_the_daemon_and_is_repeated_byte_by_byte(
    tmp_path: Path, broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    with Caller(broker.port, "replies/a") as caller:
        service = make_service(state=tmp_path)
        caller.publish(REQUEST, chat(id="one"), ResponseTopic="replies/a", CorrelationData=b"1")
        first = caller.message()
        service.stop()
        make_service(state=tmp_path)
        caller.publish(REQUEST, chat(id="one"), ResponseTopic="replies/a", CorrelationData=b"2")
        second = caller.message()
    assert first.payload == second.payload
    assert caller.property(second, "CorrelationData") == b"2"
    assert len(worker.played) == 1


def leave_unsent(service: MqttService, reply_to: str, broker: Broker, worker: ScriptedWorker) -> None:
    """Have the answer to one request end while the broker is down, stop the service, and start the broker again."""
    gate = threading.Event()

    def gated(playing: Playing) -> None:
        gate.wait(10)
        speak(playing)

    worker.script = gated
    with Caller(broker.port) as caller:
        caller.publish(REQUEST, chat(id="one"), ResponseTopic=reply_to)
        assert eventually(lambda: len(worker.played) == 1)
    broker.stop()
    gate.set()
    assert eventually(lambda: service.stats().unsent == 1)
    service.stop()
    broker.start()


def test_an_answer_that_the_broker_did_not_take_is_sent_after_the_next_start(
    tmp_path: Path, broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    leave_unsent(make_service(state=tmp_path), "replies/a", broker, worker)
    with Caller(broker.port, "replies/a") as caller:
        service = make_service(state=tmp_path)
        assert caller.next()["type"] == "final"
        assert eventually(lambda: service.stats().unsent == 0)
    service.stop()
    assert stored(tmp_path, "SELECT count(*) FROM outbox") == [(0,)]
    assert len(worker.played) == 1


def test_deltas_are_not_stored_and_of_an_answer_nothing_but_the_answer_stays(
    tmp_path: Path, broker: Broker, make_service: MakeService
) -> None:
    service = make_service(state=tmp_path)
    with Caller(broker.port, "replies/a") as caller:
        caller.publish(REQUEST, chat(id="one", stream=True), ResponseTopic="replies/a")
        *deltas, final = caller.until("final")
    assert deltas
    service.stop()
    ((payload, state),) = stored(tmp_path, "SELECT final, state FROM job")
    assert isinstance(payload, bytes)
    assert final["message"]["content"].encode() in payload
    assert (state, stored(tmp_path, "SELECT * FROM body")) == ("answered", [])


def test_without_durable_nothing_is_written(tmp_path: Path, broker: Broker, make_service: MakeService) -> None:
    service = make_service(state=tmp_path, durable=False)
    with Caller(broker.port, "replies/a") as caller:
        for _ in range(2):
            caller.publish(REQUEST, chat(id="one"), ResponseTopic="replies/a")
            assert caller.next()["type"] == "final"
    assert service.stats().repeated == 1
    service.stop()
    assert [*tmp_path.rglob("*.sqlite*")] == []


def test_a_full_inbox_is_an_error_and_every_accepted_request_is_answered(
    tmp_path: Path, broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    gate = threading.Event()

    def gated(playing: Playing) -> None:
        gate.wait(20)
        speak(playing)

    worker.script = gated
    service = make_service(state=tmp_path, inbox_requests=20)
    with Caller(broker.port, "replies/a") as caller:
        for number in range(30):
            caller.publish(REQUEST, chat(id=str(number)), ResponseTopic="replies/a")
        errors = [caller.next() for _ in range(10)]
        assert {(error["error"]["code"], error["error"]["retry_after_s"]) for error in errors} == {("overloaded", 10.0)}
        assert "the inbox is full: 20 requests" in errors[0]["error"]["message"]
        gate.set()
        finals = [caller.next() for _ in range(20)]
        assert {message["type"] for message in finals} == {"final"}
        assert {message["id"] for message in (*errors, *finals)} == {str(number) for number in range(30)}
        assert eventually(lambda: service.stats().unsent == 0)
        caller.publish(REQUEST, chat(id="later"), ResponseTopic="replies/a")
        assert caller.next()["type"] == "final"
    assert outcomes(service) == {"overloaded": 10, "stop": 21}


class Busy(ScriptedWorker):
    """Refuses requests until it is told otherwise."""

    busy = True

    def submit(self, request: ChatRequest, on_event: OnEvent) -> Playing:
        if self.busy:
            raise UnavailableError("the queue is full", code="overloaded", retry_after_s=2.5)
        return super().submit(request, on_event)


@pytest.mark.parametrize("worker", [Busy()])
def test_a_request_waits_while_the_engine_takes_none(broker: Broker, make_service: MakeService, worker: Busy) -> None:
    service = make_service()
    with Caller(broker.port, "replies/a") as caller:
        for number in range(3):
            caller.publish(REQUEST, chat(id=str(number)), ResponseTopic="replies/a")
        assert caller.silent(0.3)
        # Meanwhile one is cancelled, and the time of another ends.
        caller.publish(CANCEL, {"id": "1"}, ResponseTopic="replies/a")
        final = caller.next()
        assert (final["id"], final["finish_reason"]) == ("1", "cancelled")
        caller.publish(REQUEST, chat(id="late", deadline_s=0.2), ResponseTopic="replies/a")
        error = caller.next()
        assert (error["id"], error["error"]["code"]) == ("late", "deadline_exceeded")
        worker.busy = False
        assert {caller.next()["id"] for _ in range(2)} == {"0", "2"}
    assert outcomes(service) == {"stop": 2, "cancelled": 1, "deadline_exceeded": 1}


def test_senders_take_turns(broker: Broker, make_service: MakeService, worker: ScriptedWorker) -> None:
    gate = threading.Event()

    def gated(playing: Playing) -> None:
        gate.wait(20)
        speak(playing)

    worker.script = gated
    service = make_service()
    with Caller(broker.port, "replies/#") as caller:
        for number in range(40):
            caller.publish(REQUEST, chat(id=str(number)), ResponseTopic="replies/many")
        caller.publish(REQUEST, chat(id="1"), ResponseTopic="replies/one")
        assert eventually(lambda: service.stats().unanswered == 41)
        gate.set()
        order = [caller.message().topic for _ in range(41)]
    # In the order of arrival it would begin when 31 others have ended.
    assert order.index("replies/one") < 30


@contextmanager
def full_disk(spare: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_new_requests_are_refused_and_accepted_ones_are_answered(
    tmp_path: Path, broker: Broker, make_service: MakeService, worker: ScriptedWorker, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    def gated(playing: Playing) -> None:
        gate.wait(20)
        speak(playing)

    worker.script = gated
    service = make_service(state=tmp_path)
    folder = tmp_path / "mqtt" / "edgekit-box"
    with Caller(broker.port, "replies/a") as caller:
        for number in range(3):
            caller.publish(REQUEST, chat(id=str(number)), ResponseTopic="replies/a")
        assert eventually(lambda: len(worker.played) == 3)
        with full_disk(max(file.stat().st_size for file in folder.iterdir())):
            caller.publish(REQUEST, chat(id="refused"), ResponseTopic="replies/a")
            error = caller.next()
            assert (error["id"], error["error"]["code"]) == ("refused", "overloaded")
            assert error["error"]["hint"] == "is its disk full?"
            # A repeated one is accepted already, and waits.
            caller.publish(REQUEST, chat(id="1"), ResponseTopic="replies/a", CorrelationData=b"new")
            assert eventually(lambda: service.stats().repeated == 1)
            gate.set()
            assert {caller.next(20)["id"] for _ in range(3)} == {"0", "1", "2"}
        # Once there is space it goes on by itself, and what was answered is remembered.
        assert eventually(lambda: service.stats().unanswered == 0)
        caller.publish(REQUEST, chat(id="refused"), ResponseTopic="replies/a")
        assert caller.next(20)["type"] == "final"
        caller.publish(REQUEST, chat(id="1"), ResponseTopic="replies/a")
        assert caller.next(20)["type"] == "final"
    assert len(worker.played) == 4
    assert "cannot be used" in caplog.text
    service.stop()
    assert stored(tmp_path, "SELECT count(*) FROM job WHERE state = 'answered'") == [(4,)]


def test_a_state_folder_that_cannot_be_used_does_not_keep_requests_from_being_answered(
    tmp_path: Path, broker: Broker, make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    make_service(state=tmp_path / "file")
    with Caller(broker.port, "replies/a") as caller:
        caller.publish(REQUEST, chat(), ResponseTopic="replies/a")
        assert caller.next()["type"] == "final"
    assert "requests are lost if the daemon ends" in caplog.text


def test_while_the_file_cannot_be_opened_the_broker_keeps_the_requests(
    tmp_path: Path, broker: Broker, make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.daemon.job_store.LOCK_WAIT_S", 0.05)
    monkeypatch.setattr(service_module, "IDLE_WAIT_S", 0.05)
    service = make_service(state=tmp_path)
    service.stop()
    with closing(sqlite3.connect(tmp_path / "mqtt" / "edgekit-box" / "requests.sqlite")) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        service = make_service(state=tmp_path, wait=False)
        with Caller(broker.port, "replies/a") as caller:
            caller.publish(REQUEST, chat(), ResponseTopic="replies/a")
            assert caller.silent(0.3)
            assert not service.connected
            other.rollback()
            other.close()
            assert caller.next(20)["type"] == "final"


def test_a_reply_topic_that_is_no_longer_allowed_gets_no_answer(
    tmp_path: Path, broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    worker.script = deaf
    service = make_service(state=tmp_path)
    with Caller(broker.port, "secret/#") as caller:
        caller.publish(REQUEST, chat(id="one"), ResponseTopic="secret/a")
        assert eventually(lambda: len(worker.played) == 1)
        service.stop()
        worker.played.clear()
        worker.script = speak
        service = make_service(state=tmp_path, reply_prefixes=("replies",))
        assert eventually(lambda: outcomes(service).get("reply_topic_refused") == 1)
        assert caller.silent(0.2)
    assert service.stats().unanswered == service.stats().unsent == 0
    assert worker.played == []


def test_a_stored_reply_is_not_sent_to_a_topic_that_is_no_longer_allowed(
    tmp_path: Path, broker: Broker, make_service: MakeService, worker: ScriptedWorker, caplog: pytest.LogCaptureFixture
) -> None:
    leave_unsent(make_service(state=tmp_path), "secret/a", broker, worker)
    with Caller(broker.port, "secret/#") as caller:
        service = make_service(state=tmp_path, reply_prefixes=("replies",))
        assert eventually(lambda: service.stats().unsent == 0)
        assert caller.silent(0.2)
    assert "a reply is not sent" in caplog.text


def test_a_cancelled_request_is_not_begun_again(
    tmp_path: Path, broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    worker.script = deaf
    service = make_service(state=tmp_path)
    with Caller(broker.port, "replies/a") as caller:
        caller.publish(REQUEST, chat(id="one"), ResponseTopic="replies/a")
        caller.publish(CANCEL, {"id": "one"}, ResponseTopic="replies/a")
        assert eventually(lambda: bool(worker.played) and worker.played[0].cancelled.is_set())
        service.stop()
        make_service(state=tmp_path)
        final = caller.next()
        assert (final["id"], final["finish_reason"]) == ("one", "cancelled")
    assert len(worker.played) == 1


@pytest.mark.usefixtures("service")
def test_a_request_repeated_after_a_failure_is_a_new_attempt(broker: Broker, worker: ScriptedWorker) -> None:
    def fail(playing: Playing) -> None:
        playing.on_event(Delta(0, "Rome"))
        playing.on_event(Failure(EdgekitError("broken")))

    worker.script = fail
    with Caller(broker.port, "caller/f") as caller:
        caller.publish(REQUEST, chat(id="1", stream=True), ResponseTopic="caller/f")
        failed = caller.until("error")
        caller.publish(REQUEST, chat(id="1", stream=True), ResponseTopic="caller/f")
        again = caller.until("error")
        caller.publish(REQUEST, chat(id="1", temperature=9), ResponseTopic="caller/f")
        (refused,) = caller.until("error")
    (one,), (two,) = ({message["attempt"] for message in messages} for messages in (failed, again))
    assert one < two < refused["attempt"]


def test_the_model_of_these_tests_is_named(broker: Broker, make_service: MakeService, worker: ScriptedWorker) -> None:
    worker.script = wait_for_cancel
    make_service()
    with Caller(broker.port, "replies/a") as caller:
        for number in range(11):
            caller.publish(REQUEST, chat(id=str(number)), ResponseTopic="replies/a")
        caller.publish(CANCEL, {"id": "10"}, ResponseTopic="replies/a")
        assert caller.next()["model"] == MODEL.name
