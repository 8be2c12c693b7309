"""Connecting, losing and restoring the connection, and the presence published meanwhile."""

from __future__ import annotations

import json
import logging
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from edgekit.config import MqttConfig
from edgekit.daemon.mqtt import connection, sockets
from edgekit.daemon.mqtt import service as service_module
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.daemon.mqtt.service import MqttService
from edgekit.device_id import device_id
from edgekit.errors import ConfigError
from edgekit.generation.types import Delta
from tests.broker import Broker, Caller, free_port, tool
from tests.daemon.mqtt.conftest import MODEL, REQUEST, STATUS, MakeService, chat, eventually, outcomes
from tests.daemon.mqtt.scripted import Playing, ScriptedWorker, finish, speak

pytestmark = pytest.mark.broker


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BACKOFF_FIRST_S", 0.05)
    monkeypatch.setattr(connection, "BACKOFF_MAX_S", 0.2)


@pytest.mark.usefixtures("service")
def test_presence_and_info_are_retained_and_name_the_model(broker: Broker) -> None:
    with Caller(broker.port, "edgekit/box/status", "edgekit/box/info") as caller:
        first, second = caller.message(), caller.message()
    by_topic = {message.topic: message for message in (first, second)}
    assert all(message.retain for message in by_topic.values())
    status = json.loads(by_topic[STATUS].payload)
    assert (status["type"], status["state"], status["model"]) == ("status", "online", "tiny-instruct")
    assert status["since"].endswith("Z")
    info = json.loads(by_topic["edgekit/box/info"].payload)
    assert info["model"] == {"id": "tiny-instruct", "context_length": 2048}
    assert info["topics"]["request"] == REQUEST
    assert info["protocol"] == 1


def test_a_clean_disconnect_publishes_offline(broker: Broker, service: MqttService) -> None:
    with Caller(broker.port, STATUS) as caller:
        online = caller.next()
        service.stop()
        offline = caller.next()
        assert caller.silent(0.1)
    assert (online["state"], offline["state"]) == ("online", "offline")
    assert online["session"] == offline["session"]


def test_the_will_of_a_killed_daemon_publishes_offline(broker: Broker) -> None:
    program = (
        "import time\n"
        "from edgekit.config import MqttConfig\n"
        "from edgekit.daemon.mqtt.service import MqttService\n"
        "from tests.daemon.mqtt.conftest import MODEL\n"
        "from tests.daemon.mqtt.scripted import ScriptedWorker\n"
        f"MqttService(MqttConfig(host='127.0.0.1', port={broker.port}, device_id='box'), "
        "ScriptedWorker(), MODEL).start()\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[3])
    try:
        with Caller(broker.port, STATUS) as caller:
            online = caller.next(20)
            process.kill()
            offline = caller.next()
    finally:
        process.kill()
        process.wait()
    assert (online["state"], offline["state"]) == ("online", "offline")
    assert online["session"] == offline["session"]


@pytest.mark.usefixtures("service")
def test_a_late_offline_of_an_older_session_is_corrected(broker: Broker) -> None:
    with Caller(broker.port, STATUS) as caller:
        online = caller.next()
        caller.publish(STATUS, {**online, "state": "offline", "session": "older-1"}, retain=True)
        assert caller.next()["state"] == "offline"
        assert caller.next() == online
        assert caller.silent(1.2), "corrected once only"


def test_a_request_made_while_the_daemon_was_away_is_answered_when_it_is_back(
    broker: Broker, make_service: MakeService
) -> None:
    make_service().stop()
    with Caller(broker.port, "caller/q") as caller:
        caller.publish(REQUEST, chat(id="q"), ResponseTopic="caller/q")
        assert caller.silent(0.2)
        make_service()
        assert caller.next()["type"] == "final"


def test_a_restarted_broker_is_found_again_and_requests_go_on(
    broker: Broker, service: MqttService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Caller(broker.port, STATUS) as caller:
        before = caller.next()
    broker.stop(signal.SIGKILL)
    assert eventually(lambda: not service.connected)
    time.sleep(0.5)
    broker.start()
    assert eventually(lambda: service.connected)
    assert service.stats().reconnects == 1
    with Caller(broker.port, STATUS, "caller/again") as caller:
        after = caller.next()
        caller.publish(REQUEST, chat(), ResponseTopic="caller/again")
        assert caller.next()["type"] == "final"
    assert after["state"] == "online"
    assert after["session"] != before["session"]
    lines = [record.message for record in caplog.records]
    assert len([line for line in lines if "cannot reach the broker" in line]) == 1, lines


def test_an_answer_finished_while_the_broker_was_away_arrives_after_it_is_back(
    tmp_path: Path, make_service: MakeService, worker: ScriptedWorker
) -> None:
    started, gate = threading.Event(), threading.Event()

    def gated(playing: Playing) -> None:
        started.set()
        gate.wait(20)
        speak(playing)

    worker.script = gated
    folder = tmp_path / "persistent"
    folder.mkdir()
    config = ("allow_anonymous true", "persistence true", f"persistence_location {folder}/", "autosave_interval 1")
    with Broker(folder, config=config) as broker:
        service = make_service(port=broker.port)
        with Caller(broker.port, "caller/p") as caller:
            caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/p", CorrelationData=b"p")
            assert started.wait(20)
        broker.stop()
        assert eventually(lambda: not service.connected)
        gate.set()
        assert eventually(lambda: outcomes(service) == {"stop": 1})
        broker.start()
        with Caller(broker.port, "caller/p") as caller:
            # The service may reconnect before this caller subscribes, so the caller repeats its request.
            assert eventually(lambda: service.connected)
            caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/p", CorrelationData=b"p")
            *_, final = caller.until("final")
    assert final["finish_reason"] == "stop"
    assert len(worker.played) == 1, "answered from the cache, not generated again"


def test_a_broker_away_at_the_start_is_waited_for(
    tmp_path: Path, make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    service = make_service(wait=False, port=port)
    assert eventually(lambda: "cannot reach the broker" in caplog.text)
    time.sleep(0.5)
    assert not service.connected
    assert caplog.text.count("cannot reach the broker") == 1
    folder = tmp_path / "late"
    folder.mkdir()
    with Broker(folder, port=port):
        assert eventually(lambda: service.connected)
        with Caller(port, "caller/late") as caller:
            caller.publish(REQUEST, chat(), ResponseTopic="caller/late")
            assert caller.next()["type"] == "final"
        service.stop()


def test_stopping_while_the_broker_is_away_does_not_hang(make_service: MakeService) -> None:
    service = make_service(wait=False, port=free_port())
    began = time.monotonic()
    service.stop()
    assert time.monotonic() - began < 20


def test_an_unknown_host_is_logged_with_a_hint(make_service: MakeService, caplog: pytest.LogCaptureFixture) -> None:
    make_service(wait=False, host="no-such-host.invalid")
    assert eventually(lambda: "check mqtt.host" in caplog.text)


def test_username_and_password_file_are_used_and_a_wrong_password_is_explained(
    tmp_path: Path, make_service: MakeService, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REFUSED_BACKOFF_S", 0.1)
    folder = tmp_path / "auth"
    folder.mkdir()
    subprocess.run([tool("mosquitto_passwd"), "-b", "-c", folder / "users", "box", "right"], check=True)
    (folder / "users").chmod(0o600)
    secret = folder / "password"
    secret.write_text("wrong\n")
    with Broker(folder, config=("allow_anonymous false", f"password_file {folder}/users")) as broker:
        service = make_service(wait=False, port=broker.port, username="box", password_file=secret)
        assert eventually(lambda: "check mqtt.username and mqtt.password_file" in caplog.text)
        assert "right" not in caplog.text
        time.sleep(0.5)
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == 1, caplog.text
        secret.write_text("right\n")
        assert eventually(lambda: service.connected), "the file is read for each attempt"
        service.stop()


def test_a_missing_password_file_is_logged_and_does_not_stop_the_daemon(
    tmp_path: Path, make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(wait=False, username="box", password_file=tmp_path / "absent")
    assert eventually(lambda: "check mqtt.password_file" in caplog.text)
    (tmp_path / "absent").write_text("anything")
    assert eventually(lambda: service.connected)


@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")  # paho drops it when a handshake fails
def test_tls_needs_the_right_authority(
    tmp_path: Path, make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ca", "other"):
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
                *("-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.crt", "-days", "2"),
                *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            ],
            check=True,
            capture_output=True,
        )
    folder = tmp_path / "tls"
    folder.mkdir()
    files = (f"certfile {tmp_path}/ca.crt", f"keyfile {tmp_path}/ca.key")
    with Broker(folder, config=("allow_anonymous true", *files)) as broker:
        service = make_service(wait=False, port=broker.port, tls=True, ca_file=tmp_path / "other.crt")
        assert eventually(lambda: "check mqtt.tls, mqtt.ca_file" in caplog.text)
        assert not service.connected
        service.stop()
        make_service(port=broker.port, tls=True, ca_file=tmp_path / "ca.crt").stop()


def test_a_refused_subscription_is_explained(
    tmp_path: Path, make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "acl"
    folder.mkdir()
    # With an access list mosquitto grants every subscription; only its dynamic security plugin refuses one. This
    # test shows that a service without rights neither crashes nor publishes a status.
    (folder / "acl").write_text("topic read nothing\n")
    with Broker(folder, config=("allow_anonymous true", f"acl_file {folder}/acl")) as broker:
        service = make_service(wait=False, port=broker.port)
        with Caller(broker.port, STATUS) as caller:
            assert caller.silent(0.5)
        service.stop()
    assert "Traceback" not in caplog.text


def test_replies_that_the_broker_refuses_are_logged_once_in_a_while(
    tmp_path: Path, make_service: MakeService, worker: ScriptedWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """Any client may name a response topic that the device may not publish to."""

    def speak_in_many_messages(playing: Playing) -> None:
        for seq in range(30):
            playing.on_event(Delta(seq, "word "))
            time.sleep(0.01)
        playing.on_event(finish())

    worker.script = speak_in_many_messages
    folder = tmp_path / "acl"
    folder.mkdir()
    (folder / "acl").write_text("topic readwrite edgekit/#\n")
    with Broker(folder, config=("allow_anonymous true", f"acl_file {folder}/acl")) as broker:
        service = make_service(port=broker.port, coalesce_ms=1)
        with Caller(broker.port) as caller:
            for number in range(3):
                caller.publish(REQUEST, chat(id=str(number), stream=True), ResponseTopic="caller/secret")
        assert eventually(lambda: service.stats().dropped > 30)
        service.stop()
    assert len([line for line in caplog.messages if "refused a message on caller/secret" in line]) == 1


def test_a_shorter_keep_alive_of_the_broker_is_kept(tmp_path: Path, make_service: MakeService) -> None:
    folder = tmp_path / "short"
    folder.mkdir()
    # The broker disconnects after one and a half times as much silence; paho 2.1 did not obey it.
    with Broker(folder, config=("allow_anonymous true", "max_keepalive 10")) as broker:
        service = make_service(port=broker.port, keepalive_s=30)
        time.sleep(18)
        assert service.connected
        assert service.stats().reconnects == 0
        service.stop()


def test_a_second_device_with_the_same_id_is_logged(
    make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    make_service()
    make_service()
    assert eventually(lambda: "give each device its own mqtt.device_id" in caplog.text)


def test_a_connection_that_breaks_while_a_message_is_sent_is_made_again(broker: Broker, service: MqttService) -> None:
    # What paho does when a write fails, which may be outside the wait for the network.
    assert service._connection._client is not None
    service._connection._client._sock_close()
    service._connection.wake()
    assert eventually(lambda: service.stats().reconnects == 1)
    with Caller(broker.port, "caller/again") as caller:
        caller.publish(REQUEST, chat(), ResponseTopic="caller/again")
        assert caller.next()["type"] == "final"


def test_an_error_in_a_callback_costs_one_connection_and_not_the_thread(
    broker: Broker, service: MqttService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(sockets.Waker, "drain", broken)
        assert eventually(lambda: not service.connected)
    assert eventually(lambda: service.connected)
    with Caller(broker.port, "caller/after") as caller:
        caller.publish(REQUEST, chat(), ResponseTopic="caller/after")
        assert caller.next()["type"] == "final"


def test_a_service_whose_thread_fails_is_offline_and_can_still_be_stopped(
    broker: Broker, service: MqttService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> float:
        raise ZeroDivisionError

    with Caller(broker.port, STATUS) as caller:
        assert caller.next()["state"] == "online"
        monkeypatch.setattr(service, "_next_wait_s", broken)
        assert caller.next()["state"] == "offline"
    assert not service.connected
    service.stop()


def deaf(playing: Playing) -> None:
    """Send no event, not even when cancelled."""
    playing.cancelled.wait(10)


def test_stopping_cancels_what_runs_and_still_answers_it(
    broker: Broker, make_service: MakeService, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "STOP_GRACE_S", 0.2)
    service = make_service()
    worker.script = deaf
    with Caller(broker.port, "caller/stop", STATUS) as caller:
        assert caller.next()["state"] == "online"
        caller.publish(REQUEST, chat(id="s"), ResponseTopic="caller/stop")
        assert eventually(lambda: len(worker.played) == 1)
        service.stop()
        assert caller.next()["error"]["code"] == "shutting_down"
        assert caller.next()["state"] == "offline"
    assert worker.played[0].cancelled.is_set()


def test_all_that_is_queued_at_the_stop_is_sent_before_the_connection_closes(
    tmp_path: Path, make_service: MakeService, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "STOP_GRACE_S", 0.2)
    folder = tmp_path / "narrow"
    folder.mkdir()
    # The broker takes one message at a time.
    with Broker(folder, config=("allow_anonymous true", "max_inflight_messages 1")) as broker:
        service = make_service(port=broker.port)
        worker.script = deaf
        with Caller(broker.port, "caller/stop", STATUS) as caller:
            assert caller.next()["state"] == "online"
            for number in range(6):
                caller.publish(REQUEST, chat(id=f"s{number}"), ResponseTopic="caller/stop")
            assert eventually(lambda: len(worker.played) == 6)
            service.stop()
            answers = [caller.next() for _ in range(6)]
            assert {(answer["id"], answer["error"]["code"]) for answer in answers} == {
                (f"s{number}", "shutting_down") for number in range(6)
            }
            assert caller.next()["state"] == "offline"


def test_a_request_over_the_limit_is_answered_and_one_far_over_it_costs_nothing(
    broker: Broker, make_service: MakeService
) -> None:
    # The smallest limit: the packet's other parts need room of their own.
    service = make_service(max_payload_bytes=1024)
    with Caller(broker.port, "caller/size") as caller:
        for size in (1100, 2100, 60_000):
            caller.publish(REQUEST, chat(user="x" * size), ResponseTopic="caller/size")
            assert caller.next()["error"]["code"] == "body_too_large"
        caller.publish(REQUEST, chat(user="x" * 80_000), ResponseTopic="caller/size")
        caller.publish(REQUEST, chat(), ResponseTopic="caller/size")
        # The broker discards the larger one.
        assert caller.next()["type"] == "final"
        assert caller.silent(0.1)
    assert service.stats().reconnects == 0


@pytest.mark.parametrize("setting", [{"device_id": "a/b"}, {"device_id": "+"}, {"prefix": ""}, {"prefix": "a//b"}])
def test_a_name_that_is_not_a_valid_topic_level_is_a_configuration_error(setting: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="mqtt") as caught:
        MqttService(MqttConfig(host="127.0.0.1", **setting), ScriptedWorker(), MODEL)  # type: ignore[arg-type]
    assert caught.value.hint


def test_without_a_configured_id_topics_and_log_have_the_devices_own(
    make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    service = make_service(device_id=None)
    assert service.topics.device == device_id()
    assert service.topics.request == f"edgekit/{device_id()}/chat/request"
    assert any(device_id() in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("jitter", "times"),
    [(1.0, [0, 1, 3, 7, 15, 31, 63, 123, 183]), (1.5, [0, 1.5, 4.5, 10.5, 22.5, 46.5, 94.5, 154.5])],
)
def test_the_time_between_attempts_doubles_up_to_a_minute(
    jitter: float, times: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

    class Attempts:
        def __init__(self) -> None:
            self.times: list[float] = []

        def will(self) -> Outgoing:
            self.times.append(Clock.now)
            return Outgoing("a", b"")

    monkeypatch.setattr(connection, "BACKOFF_FIRST_S", 1.0)
    monkeypatch.setattr(connection, "BACKOFF_MAX_S", 60.0)
    monkeypatch.setattr(connection, "time", Clock)
    monkeypatch.setattr(random, "uniform", lambda low, high: low + (jitter - 1) * 2 * (high - low))
    attempts = Attempts()
    config = MqttConfig(host="127.0.0.1", port=free_port())
    link = connection.Connection(config, client_id="c", subscriptions=(), listener=attempts)  # type: ignore[arg-type]
    while Clock.now < 200:
        link.step(0)
        Clock.now += 0.5
    link.close()
    assert attempts.times == times


class Received:
    """A listener that acknowledges what it receives."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def will(self) -> Outgoing:
        return Outgoing("direct/status", b"gone", durable=False)

    def on_ready(self) -> None:
        pass

    def on_message(self, message: paho.MQTTMessage, ack: Callable[[], None]) -> None:
        self.payloads.append(bytes(message.payload))
        ack()


@pytest.fixture
def link(broker: Broker) -> Iterator[connection.Connection]:
    """A connection that the test drives itself; it receives what it sends to `direct/in`."""
    config = MqttConfig(host="127.0.0.1", port=broker.port)
    made = connection.Connection(config, client_id="direct", subscriptions=("direct/in",), listener=Received())
    yield made
    made.close()


def drive(link: connection.Connection, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not until():
        assert time.monotonic() < deadline
        link.step(0.05)


def payloads(link: connection.Connection) -> list[bytes]:
    listener = link._listener
    assert isinstance(listener, Received)
    return listener.payloads


def test_a_connection_is_idle_once_the_broker_has_acknowledged_everything(link: connection.Connection) -> None:
    assert (link.idle, link.ready, link.can_send_now, link.connections) == (True, False, False, 0)
    link.send(Outgoing("direct/in", b"kept"))
    link.send(Outgoing("direct/in", b"presence of a connection that is not up", durable=False))
    assert (link.idle, link.unacknowledged) == (False, 0)
    drive(link, lambda: link.ready)
    # Sent, and its acknowledgement is not read yet.
    assert (link.idle, link.unacknowledged, link.can_send_now, link.connections) == (False, 1, True, 1)
    drive(link, lambda: link.idle and len(payloads(link)) == 1)
    assert (link.unacknowledged, link.can_send_now) == (0, True)
    link.send(Outgoing("direct/in", b"presence", durable=False))
    drive(link, lambda: link.idle and len(payloads(link)) == 2)
    assert payloads(link) == [b"kept", b"presence"]


def test_sixteen_messages_at_most_are_on_their_way_and_the_others_follow_in_order(link: connection.Connection) -> None:
    drive(link, lambda: link.ready)
    sent = [b"%d" % number for number in range(40)]
    for number, payload in enumerate(sent):
        assert link.can_send_now is (number < 16)
        link.send(Outgoing("direct/in", payload))
        assert link.unacknowledged == min(number + 1, 16)
    drive(link, lambda: link.idle and len(payloads(link)) == 40)
    assert payloads(link) == sent
    assert link.dropped == 0


def test_of_too_many_messages_that_wait_the_oldest_are_dropped_and_counted(
    link: connection.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_OUTBOX", 3)
    for number in range(5):
        link.send(Outgoing("direct/in", b"%d" % number))
    assert link.dropped == 2
    drive(link, lambda: link.idle and len(payloads(link)) == 3)
    assert payloads(link) == [b"2", b"3", b"4"]


def test_the_bytes_that_wait_are_those_that_still_wait(
    link: connection.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_OUTBOX_BYTES", 30 * Outgoing("direct/in", b"00").packet_bytes)
    drive(link, lambda: link.ready)
    # More than are sent at once, so that some wait; every burst fits, if those that were sent are not counted.
    for _ in range(3):
        wanted = len(payloads(link)) + 40
        for number in range(40):
            link.send(Outgoing("direct/in", b"%02d" % number))
        drive(link, partial(lambda count: link.idle and len(payloads(link)) == count, wanted))
    assert link.dropped == 0


def test_a_message_larger_than_the_broker_takes_is_replaced_by_its_fallback_or_dropped(tmp_path: Path) -> None:
    with Broker(tmp_path, config=("allow_anonymous true", "max_packet_size 500")) as broker:
        config = MqttConfig(host="127.0.0.1", port=broker.port)
        link = connection.Connection(config, client_id="direct", subscriptions=("direct/in",), listener=Received())
        drive(link, lambda: link.ready)
        assert link.max_packet_size == 500
        overhead = Outgoing("direct/in", b"").packet_bytes
        for message in (
            Outgoing("direct/in", b"x" * (500 - overhead)),
            Outgoing("direct/in", b"x" * (501 - overhead), fallback=Outgoing("direct/in", b"too large")),
            Outgoing("direct/in", b"x" * 600),
            Outgoing("direct/in", b"x" * 600, fallback=Outgoing("direct/in", b"y" * 600)),
        ):
            link.send(message)
        drive(link, lambda: link.idle and len(payloads(link)) == 2)
        assert payloads(link) == [b"x" * (500 - overhead), b"too large"]
        assert link.dropped == 2
        link.close()
        assert not link.ready
