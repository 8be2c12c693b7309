"""Asking over both doors, with real doors, a real broker, and a scheduler that plays a script."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.client import ask_http, ask_mqtt
from edgekit.config import HttpConfig, MqttConfig
from edgekit.daemon.http.door import HttpDoor
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.mqtt.door import MqttDoor
from edgekit.errors import ConfigError, EdgekitError, RequestError
from edgekit.generation.model import ModelInfo
from edgekit.generation.request import Delta, Failure, Finish, Message
from tests.broker import Broker, Caller, free_port
from tests.conftest import edgekit
from tests.daemon.mqtt.conftest import eventually
from tests.daemon.mqtt.scripted import WORDS, Playing, ScriptedScheduler, finish, wait_for_cancel

QUESTION = (Message("user", "What is the capital of France?"),)
MODEL = ModelInfo("tiny-instruct", created=1_700_000_000, context_length=2048)


@pytest.fixture
def scheduler() -> Iterator[ScriptedScheduler]:
    scripted = ScriptedScheduler()
    yield scripted
    scripted.stop()


@pytest.fixture
def url(scheduler: ScriptedScheduler) -> Iterator[str]:
    door = HttpDoor(HttpConfig(port=0), scheduler, MODEL, Metrics())  # type: ignore[arg-type]  # it uses submit alone
    door.start()
    yield door.url
    for playing in scheduler.played:
        playing.cancel()
    door.stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def door(broker: Broker, scheduler: ScriptedScheduler) -> Iterator[MqttDoor]:
    opened = MqttDoor(MqttConfig(host="127.0.0.1", port=broker.port, device_id="box"), scheduler, MODEL)
    opened.start()
    assert eventually(lambda: opened.connected)
    yield opened
    opened.stop()


def told(events: Iterator[Delta | Finish]) -> tuple[str, Finish]:
    *deltas, last = events
    assert isinstance(last, Finish)
    assert all(isinstance(event, Delta) for event in deltas)
    assert [event.seq for event in deltas if isinstance(event, Delta)] == list(range(len(deltas)))
    return "".join(event.text for event in deltas if isinstance(event, Delta)), last


def test_asking_over_http_streams_the_answer_and_its_cost(url: str, scheduler: ScriptedScheduler) -> None:
    for base in (url, f"{url}/v1/"):
        assert told(ask_http(base, QUESTION, max_tokens=9, seed=None)) == ("".join(WORDS), finish())
    assert scheduler.played[0].request.messages == QUESTION
    assert scheduler.played[0].request.max_tokens == 9


@pytest.mark.broker
@pytest.mark.usefixtures("door")
def test_asking_over_mqtt_streams_the_answer_and_its_cost(broker: Broker, scheduler: ScriptedScheduler) -> None:
    assert told(ask_mqtt("127.0.0.1", broker.port, "box", QUESTION, max_tokens=9)) == ("".join(WORDS), finish())
    request = scheduler.played[0].request
    assert (request.messages, request.max_tokens) == (QUESTION, 9)
    assert request.deadline_s is not None
    assert 100 < request.deadline_s <= 120


def think(playing: Playing) -> None:
    playing.on_event(Delta(0, "Hm, ", reasoning=True))
    playing.on_event(Delta(1, "[France].\n", reasoning=True))
    playing.on_event(Delta(2, "Paris"))
    playing.on_event(finish())


def test_thoughts_are_told_apart_over_http(url: str, scheduler: ScriptedScheduler) -> None:
    scheduler.script = think
    deltas = [event for event in ask_http(url, QUESTION) if isinstance(event, Delta)]
    assert [(delta.text, delta.reasoning) for delta in deltas] == [
        ("Hm, ", True),
        ("[France].\n", True),
        ("Paris", False),
    ]


@pytest.mark.broker
@pytest.mark.usefixtures("door")
def test_thoughts_are_told_apart_over_mqtt(broker: Broker, scheduler: ScriptedScheduler) -> None:
    scheduler.script = think
    deltas = [event for event in ask_mqtt("127.0.0.1", broker.port, "box", QUESTION) if isinstance(event, Delta)]
    assert [delta.seq for delta in deltas] == list(range(len(deltas)))
    said = {kind: "".join(delta.text for delta in deltas if delta.reasoning == kind) for kind in (True, False)}
    assert said == {True: "Hm, [France].\n", False: "Paris"}


def test_the_command_line_prints_the_answer_alone_and_thoughts_where_nobody_pipes_them(
    url: str, scheduler: ScriptedScheduler
) -> None:
    scheduler.script = think
    done = edgekit("ask", "--http", url, "What is the capital of France?")
    assert done.stdout == "Paris\n"
    assert done.stderr.startswith("Hm, [France].\n")


def say_nothing(playing: Playing) -> None:
    playing.cancelled.wait(10)
    playing.on_event(finish("cancelled", 0))


def fail(playing: Playing) -> None:
    playing.on_event(Delta(0, "Par"))
    playing.on_event(Failure(RequestError("too busy", hint="wait", code="overloaded", retry_after_s=3.0)))


def test_what_the_daemon_refuses_over_http_is_raised_with_code_and_hint(url: str, scheduler: ScriptedScheduler) -> None:
    with pytest.raises(RequestError, match="temperature") as refused:
        told(ask_http(url, QUESTION, temperature=9))
    assert refused.value.param == "temperature"
    scheduler.script = fail
    with pytest.raises(RequestError, match="too busy") as failed:
        told(ask_http(url, QUESTION))
    assert (failed.value.code, failed.value.hint, failed.value.retry_after_s) == ("overloaded", "wait", 3.0)


@pytest.mark.broker
@pytest.mark.usefixtures("door")
def test_what_the_daemon_refuses_over_mqtt_is_raised_with_code_and_hint(
    broker: Broker, scheduler: ScriptedScheduler
) -> None:
    scheduler.script = fail
    with pytest.raises(RequestError, match="too busy") as failed:
        told(ask_mqtt("127.0.0.1", broker.port, "box", QUESTION))
    assert (failed.value.code, failed.value.hint, failed.value.retry_after_s) == ("overloaded", "wait", 3.0)


def test_hanging_up_over_http_cancels_the_request(url: str, scheduler: ScriptedScheduler) -> None:
    scheduler.script = wait_for_cancel
    events = ask_http(url, QUESTION)
    next(events)
    events.close()
    assert scheduler.played[0].cancelled.wait(5)


@pytest.mark.broker
def test_hanging_up_over_mqtt_cancels_the_request(broker: Broker, door: MqttDoor, scheduler: ScriptedScheduler) -> None:
    scheduler.script = wait_for_cancel
    events = ask_mqtt("127.0.0.1", broker.port, "box", QUESTION)
    next(events)
    events.close()
    assert scheduler.played[0].cancelled.wait(5)
    assert door.counters.cancelled == 1


@pytest.mark.broker
@pytest.mark.usefixtures("door")
def test_interrupting_a_waiting_caller_cancels_its_request(broker: Broker, scheduler: ScriptedScheduler) -> None:
    scheduler.script = say_nothing
    program = (
        "from edgekit.client import ask_mqtt\nfrom edgekit.generation.request import Message\n"
        f"list(ask_mqtt('127.0.0.1', {broker.port}, 'box', [Message('user', 'hi')]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL
    )
    try:
        assert eventually(lambda: len(scheduler.played) == 1)
        process.send_signal(signal.SIGINT)
        assert scheduler.played[0].cancelled.wait(5)
        assert process.wait(10) != 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.broker
@pytest.mark.usefixtures("door")
def test_a_silent_device_is_given_up_and_its_request_taken_back(broker: Broker, scheduler: ScriptedScheduler) -> None:
    scheduler.script = say_nothing
    with pytest.raises(EdgekitError, match=r"said nothing for 0\.5 s") as caught:
        told(ask_mqtt("127.0.0.1", broker.port, "box", QUESTION, timeout_s=0.5))
    assert caught.value.code == "timeout"
    assert scheduler.played[0].cancelled.wait(5)


def test_a_daemon_that_is_not_there_is_reported_with_what_to_do() -> None:
    with pytest.raises(EdgekitError, match="nothing answers at") as caught:
        told(ask_http(f"http://127.0.0.1:{free_port()}", QUESTION))
    assert caught.value.code == "daemon_unreachable"
    assert "edgekit serve" in (caught.value.hint or "")


@pytest.mark.parametrize("url", ["", "localhost:1", "ftp://localhost"])
def test_an_address_that_is_no_url_is_the_users_mistake(url: str) -> None:
    with pytest.raises(ConfigError):
        told(ask_http(url, QUESTION))


def test_a_broker_that_is_not_there_is_reported_with_what_to_do() -> None:
    with pytest.raises(EdgekitError, match="no broker answers at") as caught:
        told(ask_mqtt("127.0.0.1", free_port(), "box", QUESTION))
    assert caught.value.code == "broker_unreachable"
    assert caught.value.hint


@pytest.mark.broker
def test_a_device_that_left_is_reported_as_offline(broker: Broker, door: MqttDoor) -> None:
    door.stop()
    with pytest.raises(EdgekitError, match="`box` is offline") as caught:
        told(ask_mqtt("127.0.0.1", broker.port, "box", QUESTION))
    assert caught.value.code == "device_offline"


@pytest.mark.broker
@pytest.mark.usefixtures("door")
def test_an_unknown_device_is_reported_with_the_known_ones(broker: Broker) -> None:
    with pytest.raises(EdgekitError, match="no device `bix`") as caught:
        told(ask_mqtt("127.0.0.1", broker.port, "bix", QUESTION))
    assert caught.value.hint == "known: box"


@pytest.mark.broker
def test_a_device_that_leaves_in_the_middle_ends_the_wait(
    broker: Broker, door: MqttDoor, scheduler: ScriptedScheduler
) -> None:
    scheduler.script = wait_for_cancel
    events = ask_mqtt("127.0.0.1", broker.port, "box", QUESTION)
    next(events)
    stopper = threading.Thread(target=door.stop)
    stopper.start()
    *_, last = events
    stopper.join()
    assert isinstance(last, Finish)
    assert last.reason == "cancelled"


@pytest.mark.broker
def test_a_device_that_dies_in_the_middle_ends_the_wait_but_a_late_will_does_not(broker: Broker) -> None:
    status = {"type": "status", "state": "online", "session": "new"}
    with Caller(broker.port, "edgekit/dying/chat/request") as device:
        device.publish("edgekit/dying/status", status, retain=True)

        def die() -> None:
            device.message()
            for session in ("old", "new"):
                device.publish("edgekit/dying/status", {**status, "state": "offline", "session": session}, retain=True)

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises(EdgekitError, match="went offline before") as caught:
            told(ask_mqtt("127.0.0.1", broker.port, "dying", QUESTION))
        thread.join()
    assert caught.value.code == "device_offline"


@pytest.mark.broker
@pytest.mark.usefixtures("door")
def test_a_broker_that_goes_away_in_the_middle_ends_the_wait(broker: Broker, scheduler: ScriptedScheduler) -> None:
    scheduler.script = wait_for_cancel
    events = ask_mqtt("127.0.0.1", broker.port, "box", QUESTION)
    next(events)
    broker.stop(signal.SIGKILL)
    with pytest.raises(EdgekitError) as caught:
        told(events)
    assert caught.value.code == "broker_unreachable"


@pytest.mark.broker
def test_deltas_lost_on_the_way_are_made_good_from_the_final_message(broker: Broker) -> None:
    status = {"type": "status", "state": "online", "session": "s"}
    with Caller(broker.port, "edgekit/lossy/chat/request") as device:
        device.publish("edgekit/lossy/status", status, retain=True)

        def reply() -> None:
            topic = device.property(device.message(), "ResponseTopic")
            for seq, text in ((0, "Pa"), (0, "Pa"), (2, "is"), (3, "!")):
                device.publish(topic, {"type": "delta", "id": "x", "seq": seq, "text": text})
            device.publish(topic, {"type": "something-new"})
            device.publish(topic, {"type": "final", "message": {"content": "Paris!"}, "finish_reason": "length"})

        thread = threading.Thread(target=reply)
        thread.start()
        text, last = told(ask_mqtt("127.0.0.1", broker.port, "lossy", QUESTION))
        thread.join()
    assert (text, last.reason) == ("Paris!", "length")
