"""The HTTP and MQTT clients against the real server, service and broker, with a worker that plays a script."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.client import Restarted, ask_http, ask_mqtt
from edgekit.config import MqttConfig
from edgekit.daemon.mqtt.service import MqttService
from edgekit.errors import ConfigError, EdgekitError, RequestError, UnavailableError
from edgekit.generation.types import Delta, Failure, Finished, Message, ToolCallDelta
from tests.broker import Broker, Caller, free_port
from tests.conftest import edgekit
from tests.daemon.mqtt.conftest import MODEL, eventually, outcomes
from tests.daemon.mqtt.scripted import WORDS, Playing, ScriptedWorker, finish, wait_for_cancel

QUESTION = (Message("user", "What is the capital of France?"),)
pytest_plugins = ("tests.serving",)


def collected(events: Iterator[Delta | ToolCallDelta | Restarted | Finished]) -> tuple[str, Finished]:
    *deltas, last = events
    assert isinstance(last, Finished)
    assert all(isinstance(event, Delta) for event in deltas)
    assert [event.seq for event in deltas if isinstance(event, Delta)] == list(range(len(deltas)))
    return "".join(event.text for event in deltas if isinstance(event, Delta)), last


def test_ask_http_streams_the_answer_usage_and_timings(url: str, worker: ScriptedWorker) -> None:
    for base in (url, f"{url}/v1/"):
        assert collected(ask_http(base, QUESTION, max_tokens=9, seed=None)) == ("".join(WORDS), finish())
    assert worker.played[0].request.messages == QUESTION
    assert worker.played[0].request.max_tokens == 9


@pytest.mark.broker
@pytest.mark.usefixtures("service")
def test_ask_mqtt_streams_the_answer_usage_and_timings(broker: Broker, worker: ScriptedWorker) -> None:
    assert collected(ask_mqtt("127.0.0.1", broker.port, "box", QUESTION, max_tokens=9)) == ("".join(WORDS), finish())
    request = worker.played[0].request
    assert (request.messages, request.max_tokens) == (QUESTION, 9)
    assert request.deadline_s is not None
    assert 100 < request.deadline_s <= 120


@pytest.mark.broker
def test_ask_mqtt_works_with_a_broker_that_keeps_no_retained_messages(
    tmp_path: Path, worker: ScriptedWorker, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "forgetful"
    folder.mkdir()
    with Broker(folder, config=("allow_anonymous true", "retain_available false")) as broker:
        service = MqttService(MqttConfig(host="127.0.0.1", port=broker.port, device_id="box"), worker, MODEL)
        with Caller(broker.port, "edgekit/box/status") as watcher:
            service.start()
            assert eventually(lambda: service.connected)
            assert watcher.next()["state"] == "online"
            assert collected(ask_mqtt("127.0.0.1", broker.port, "box", QUESTION)) == ("".join(WORDS), finish())
            service.stop()
            assert watcher.next()["state"] == "offline"
    assert caplog.text.count("keeps no retained messages") == 1
    assert service.stats().reconnects == 0


def think(playing: Playing) -> None:
    playing.on_event(Delta(0, "Hm, ", reasoning=True))
    playing.on_event(Delta(1, "[France].\n", reasoning=True))
    playing.on_event(Delta(2, "Paris"))
    playing.on_event(finish())


def test_reasoning_is_kept_apart_over_http(url: str, worker: ScriptedWorker) -> None:
    worker.script = think
    deltas = [event for event in ask_http(url, QUESTION) if isinstance(event, Delta)]
    assert [(delta.text, delta.reasoning) for delta in deltas] == [
        ("Hm, ", True),
        ("[France].\n", True),
        ("Paris", False),
    ]


@pytest.mark.broker
@pytest.mark.usefixtures("service")
def test_reasoning_is_kept_apart_over_mqtt(broker: Broker, worker: ScriptedWorker) -> None:
    worker.script = think
    deltas = [event for event in ask_mqtt("127.0.0.1", broker.port, "box", QUESTION) if isinstance(event, Delta)]
    assert [delta.seq for delta in deltas] == list(range(len(deltas)))
    texts = {kind: "".join(delta.text for delta in deltas if delta.reasoning == kind) for kind in (True, False)}
    assert texts == {True: "Hm, [France].\n", False: "Paris"}


def test_the_command_line_prints_the_answer_to_stdout_and_reasoning_to_stderr(url: str, worker: ScriptedWorker) -> None:
    worker.script = think
    done = edgekit("ask", "--http", url, "What is the capital of France?")
    assert done.stdout == "Paris\n"
    assert done.stderr.startswith("Hm, [France].\n")


def say_nothing(playing: Playing) -> None:
    playing.cancelled.wait(10)
    playing.on_event(finish("cancelled", 0))


def fail(playing: Playing) -> None:
    playing.on_event(Delta(0, "Par"))
    playing.on_event(Failure(UnavailableError("too busy", hint="wait", code="overloaded", retry_after_s=3.0)))


def test_an_error_over_http_is_raised_with_code_and_hint(url: str, worker: ScriptedWorker) -> None:
    with pytest.raises(RequestError, match="temperature") as refused:
        collected(ask_http(url, QUESTION, temperature=9))
    assert refused.value.param == "temperature"
    worker.script = fail
    with pytest.raises(UnavailableError, match="too busy") as failed:
        collected(ask_http(url, QUESTION))
    assert (failed.value.code, failed.value.hint, failed.value.retry_after_s) == ("overloaded", "wait", 3.0)
    # The daemon's message ends with the hint, which is not repeated.
    assert failed.value.message == "too busy"


@pytest.mark.broker
@pytest.mark.usefixtures("service")
def test_an_error_over_mqtt_is_raised_with_code_and_hint(broker: Broker, worker: ScriptedWorker) -> None:
    worker.script = fail
    with pytest.raises(UnavailableError, match="too busy") as failed:
        collected(ask_mqtt("127.0.0.1", broker.port, "box", QUESTION))
    assert (failed.value.code, failed.value.hint, failed.value.retry_after_s) == ("overloaded", "wait", 3.0)


def test_closing_the_iterator_over_http_cancels_the_request(url: str, worker: ScriptedWorker) -> None:
    worker.script = wait_for_cancel
    events = ask_http(url, QUESTION)
    next(events)
    events.close()
    assert worker.played[0].cancelled.wait(20)


@pytest.mark.broker
def test_closing_the_iterator_over_mqtt_cancels_the_request(
    broker: Broker, service: MqttService, worker: ScriptedWorker
) -> None:
    worker.script = wait_for_cancel
    events = ask_mqtt("127.0.0.1", broker.port, "box", QUESTION)
    next(events)
    events.close()
    assert worker.played[0].cancelled.wait(20)
    assert eventually(lambda: outcomes(service) == {"cancelled": 1})


@pytest.mark.broker
@pytest.mark.usefixtures("service")
def test_interrupting_a_waiting_caller_cancels_its_request(broker: Broker, worker: ScriptedWorker) -> None:
    worker.script = say_nothing
    program = (
        "from edgekit.client import ask_mqtt\nfrom edgekit.generation.types import Message\n"
        f"list(ask_mqtt('127.0.0.1', {broker.port}, 'box', [Message('user', 'hi')]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL
    )
    try:
        assert eventually(lambda: len(worker.played) == 1)
        process.send_signal(signal.SIGINT)
        assert worker.played[0].cancelled.wait(20)
        assert process.wait(10) != 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.broker
@pytest.mark.usefixtures("service")
def test_a_silent_device_times_out_and_its_request_is_cancelled(broker: Broker, worker: ScriptedWorker) -> None:
    worker.script = say_nothing
    with pytest.raises(EdgekitError, match=r"sent nothing for 0\.5 s") as caught:
        collected(ask_mqtt("127.0.0.1", broker.port, "box", QUESTION, timeout_s=0.5))
    assert caught.value.code == "timeout"
    assert worker.played[0].cancelled.wait(20)


def test_a_daemon_that_does_not_run_is_reported_with_a_hint() -> None:
    with pytest.raises(EdgekitError, match="no daemon answers at") as caught:
        collected(ask_http(f"http://127.0.0.1:{free_port()}", QUESTION))
    assert caught.value.code == "daemon_unreachable"
    assert "edgekit serve" in (caught.value.hint or "")


@pytest.mark.parametrize("url", ["", "localhost:1", "ftp://localhost"])
def test_an_address_that_is_not_a_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError):
        collected(ask_http(url, QUESTION))


def test_a_broker_that_does_not_run_is_reported_with_a_hint() -> None:
    with pytest.raises(EdgekitError, match="no broker answers at") as caught:
        collected(ask_mqtt("127.0.0.1", free_port(), "box", QUESTION))
    assert caught.value.code == "broker_unreachable"
    assert caught.value.hint


@pytest.mark.broker
def test_a_device_that_left_is_reported_as_offline(broker: Broker, service: MqttService) -> None:
    service.stop()
    with pytest.raises(EdgekitError, match="`box` is offline") as caught:
        collected(ask_mqtt("127.0.0.1", broker.port, "box", QUESTION))
    assert caught.value.code == "device_offline"


@pytest.mark.broker
@pytest.mark.usefixtures("service")
def test_an_unknown_device_is_reported_with_the_known_ones(broker: Broker) -> None:
    with pytest.raises(EdgekitError, match="no device `bix`") as caught:
        collected(ask_mqtt("127.0.0.1", broker.port, "bix", QUESTION))
    assert caught.value.hint == "known: box"


@pytest.mark.broker
def test_a_device_that_stops_during_an_answer_ends_the_wait(
    broker: Broker, service: MqttService, worker: ScriptedWorker
) -> None:
    worker.script = wait_for_cancel
    events = ask_mqtt("127.0.0.1", broker.port, "box", QUESTION)
    next(events)
    stopper = threading.Thread(target=service.stop)
    stopper.start()
    *_, last = events
    stopper.join()
    assert isinstance(last, Finished)
    assert last.reason == "cancelled"


@pytest.mark.broker
def test_a_device_that_dies_during_an_answer_ends_the_wait_but_a_late_will_does_not(broker: Broker) -> None:
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
            collected(ask_mqtt("127.0.0.1", broker.port, "dying", QUESTION))
        thread.join()
    assert caught.value.code == "device_offline"


@pytest.mark.broker
@pytest.mark.usefixtures("service")
def test_a_broker_that_stops_during_an_answer_ends_the_wait(broker: Broker, worker: ScriptedWorker) -> None:
    worker.script = wait_for_cancel
    events = ask_mqtt("127.0.0.1", broker.port, "box", QUESTION)
    next(events)
    broker.stop(signal.SIGKILL)
    with pytest.raises(EdgekitError) as caught:
        collected(events)
    assert caught.value.code == "broker_unreachable"


@pytest.mark.broker
def test_text_of_lost_deltas_is_taken_from_the_final_message(broker: Broker) -> None:
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
        text, last = collected(ask_mqtt("127.0.0.1", broker.port, "lossy", QUESTION))
        thread.join()
    assert (text, last.reason) == ("Paris!", "length")


def test_the_energy_of_a_token_is_shown_where_the_device_measures_it(url: str, worker: ScriptedWorker) -> None:
    assert "J/token" not in edgekit("ask", "--http", url, "--stats", "Hello").stderr

    def measured(playing: Playing) -> None:
        end = finish()
        playing.on_event(replace(end, timings=replace(end.timings, prefill_j=3.0, decode_j=10.5)))

    worker.script = measured
    # Eight tokens, of which the prefill yields the first.
    assert "1.50 J/token" in edgekit("ask", "--http", url, "--stats", "Hello").stderr
