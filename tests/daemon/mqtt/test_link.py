"""The connection: made, lost, made again; and what the device says of itself meanwhile."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgekit.config import MqttConfig
from edgekit.daemon.mqtt import door as door_module
from edgekit.daemon.mqtt import link
from edgekit.daemon.mqtt.door import MqttDoor
from edgekit.errors import ConfigError
from tests.broker import Broker, Caller, free_port, tool
from tests.daemon.mqtt.conftest import MODEL, REQUEST, STATUS, MakeDoor, chat, eventually
from tests.daemon.mqtt.scripted import Playing, ScriptedScheduler, speak

pytestmark = pytest.mark.broker


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "BACKOFF_FIRST_S", 0.05)
    monkeypatch.setattr(link, "BACKOFF_MOST_S", 0.2)


@pytest.mark.usefixtures("door")
def test_presence_and_card_are_retained_and_say_what_is_served(broker: Broker) -> None:
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


def test_leaving_in_good_order_says_offline(broker: Broker, door: MqttDoor) -> None:
    with Caller(broker.port, STATUS) as caller:
        online = caller.next()
        door.stop()
        offline = caller.next()
        assert caller.silent(0.1)
    assert (online["state"], offline["state"]) == ("online", "offline")
    assert online["session"] == offline["session"]


def test_a_killed_daemon_is_said_offline_by_its_will(broker: Broker) -> None:
    program = (
        "import time\n"
        "from edgekit.config import MqttConfig\n"
        "from edgekit.daemon.mqtt.door import MqttDoor\n"
        "from tests.daemon.mqtt.conftest import MODEL\n"
        "from tests.daemon.mqtt.scripted import ScriptedScheduler\n"
        f"MqttDoor(MqttConfig(host='127.0.0.1', port={broker.port}, device_id='box'), "
        "ScriptedScheduler(), MODEL).start()\n"
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


@pytest.mark.usefixtures("door")
def test_a_late_offline_of_an_older_session_is_corrected(broker: Broker) -> None:
    with Caller(broker.port, STATUS) as caller:
        online = caller.next()
        caller.publish(STATUS, {**online, "state": "offline", "session": "older-1"}, retain=True)
        assert caller.next()["state"] == "offline"
        assert caller.next() == online
        assert caller.silent(1.2), "one correction, not a war"


def test_a_request_made_while_the_daemon_was_away_is_answered_when_it_is_back(
    broker: Broker, make_door: MakeDoor
) -> None:
    make_door().stop()
    with Caller(broker.port, "caller/q") as caller:
        caller.publish(REQUEST, chat(id="q"), ResponseTopic="caller/q")
        assert caller.silent(0.2)
        make_door()
        assert caller.next()["type"] == "final"


def test_a_restarted_broker_is_found_again_and_requests_go_on(
    broker: Broker, door: MqttDoor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Caller(broker.port, STATUS) as caller:
        before = caller.next()
    broker.stop(signal.SIGKILL)
    assert eventually(lambda: not door.connected)
    time.sleep(0.5)
    broker.start()
    assert eventually(lambda: door.connected)
    assert door.connections == 2
    with Caller(broker.port, STATUS, "caller/again") as caller:
        after = caller.next()
        caller.publish(REQUEST, chat(), ResponseTopic="caller/again")
        assert caller.next()["type"] == "final"
    assert after["state"] == "online"
    assert after["session"] != before["session"]
    lines = [record.message for record in caplog.records]
    assert len([line for line in lines if "cannot reach the broker" in line]) == 1, lines


def test_an_answer_finished_while_the_broker_was_away_arrives_after_it_is_back(
    tmp_path: Path, make_door: MakeDoor, scheduler: ScriptedScheduler
) -> None:
    started, gate = threading.Event(), threading.Event()

    def gated(playing: Playing) -> None:
        started.set()
        gate.wait(20)
        speak(playing)

    scheduler.script = gated
    folder = tmp_path / "persistent"
    folder.mkdir()
    config = ("allow_anonymous true", "persistence true", f"persistence_location {folder}/", "autosave_interval 1")
    with Broker(folder, config=config) as broker:
        door = make_door(port=broker.port)
        with Caller(broker.port, "caller/p") as caller:
            caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/p", CorrelationData=b"p")
            assert started.wait(5)
        broker.stop()
        assert eventually(lambda: not door.connected)
        gate.set()
        assert eventually(lambda: door.counters.answered == 1)
        broker.start()
        with Caller(broker.port, "caller/p") as caller:
            # The door reconnects by itself; this caller listens again before or after, so it asks by its id.
            assert eventually(lambda: door.connected)
            caller.publish(REQUEST, chat(stream=True), ResponseTopic="caller/p", CorrelationData=b"p")
            *_, final = caller.until("final")
    assert final["finish_reason"] == "stop"
    assert len(scheduler.played) == 1, "answered from what was kept, not generated again"


def test_a_broker_away_at_the_start_is_waited_for(
    tmp_path: Path, make_door: MakeDoor, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    door = make_door(wait=False, port=port)
    assert eventually(lambda: "cannot reach the broker" in caplog.text)
    time.sleep(0.5)
    assert not door.connected
    assert caplog.text.count("cannot reach the broker") == 1
    folder = tmp_path / "late"
    folder.mkdir()
    with Broker(folder, port=port):
        assert eventually(lambda: door.connected)
        with Caller(port, "caller/late") as caller:
            caller.publish(REQUEST, chat(), ResponseTopic="caller/late")
            assert caller.next()["type"] == "final"
        door.stop()


def test_stopping_while_the_broker_is_away_does_not_hang(make_door: MakeDoor) -> None:
    door = make_door(wait=False, port=free_port())
    began = time.monotonic()
    door.stop()
    assert time.monotonic() - began < 2


def test_a_host_that_does_not_exist_is_logged_with_a_hint(
    make_door: MakeDoor, caplog: pytest.LogCaptureFixture
) -> None:
    make_door(wait=False, host="no-such-host.invalid")
    assert eventually(lambda: "check mqtt.host" in caplog.text)


def test_username_and_password_file_let_the_door_in_and_a_wrong_password_is_explained(
    tmp_path: Path, make_door: MakeDoor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "REFUSED_BACKOFF_S", 0.1)
    folder = tmp_path / "auth"
    folder.mkdir()
    subprocess.run([tool("mosquitto_passwd"), "-b", "-c", folder / "users", "box", "right"], check=True)
    (folder / "users").chmod(0o600)
    secret = folder / "password"
    secret.write_text("wrong\n")
    with Broker(folder, config=("allow_anonymous false", f"password_file {folder}/users")) as broker:
        door = make_door(wait=False, port=broker.port, username="box", password_file=secret)
        assert eventually(lambda: "check mqtt.username and mqtt.password_file" in caplog.text)
        assert "right" not in caplog.text
        time.sleep(0.5)
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == 1, caplog.text
        secret.write_text("right\n")
        assert eventually(lambda: door.connected), "the file is read anew for each attempt"
        door.stop()


def test_a_missing_password_file_is_logged_and_does_not_stop_the_daemon(
    tmp_path: Path, make_door: MakeDoor, caplog: pytest.LogCaptureFixture
) -> None:
    door = make_door(wait=False, username="box", password_file=tmp_path / "absent")
    assert eventually(lambda: "check mqtt.password_file" in caplog.text)
    (tmp_path / "absent").write_text("anything")
    assert eventually(lambda: door.connected)


@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")  # paho drops it when a handshake fails
def test_tls_needs_the_right_authority(tmp_path: Path, make_door: MakeDoor, caplog: pytest.LogCaptureFixture) -> None:
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
        door = make_door(wait=False, port=broker.port, tls=True, ca_file=tmp_path / "other.crt")
        assert eventually(lambda: "check mqtt.tls, mqtt.ca_file" in caplog.text)
        assert not door.connected
        door.stop()
        make_door(port=broker.port, tls=True, ca_file=tmp_path / "ca.crt").stop()


def test_a_refused_subscription_is_explained(
    tmp_path: Path, make_door: MakeDoor, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "acl"
    folder.mkdir()
    # Mosquitto grants every subscription by an access list; a dynamic security plugin could refuse one. What can be
    # seen here is that a door without rights neither crashes nor claims more than it has.
    (folder / "acl").write_text("topic read nothing\n")
    with Broker(folder, config=("allow_anonymous true", f"acl_file {folder}/acl")) as broker:
        door = make_door(wait=False, port=broker.port)
        with Caller(broker.port, STATUS) as caller:
            assert caller.silent(0.5)
        door.stop()
    assert "Traceback" not in caplog.text


def test_the_same_device_id_twice_is_pointed_out(make_door: MakeDoor, caplog: pytest.LogCaptureFixture) -> None:
    make_door()
    make_door()
    assert eventually(lambda: "give each device its own mqtt.device_id" in caplog.text)


def test_an_error_in_a_callback_costs_one_connection_and_not_the_thread(
    broker: Broker, door: MqttDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(link.Link, "_drain_wake", broken)
        assert eventually(lambda: not door.connected)
    assert eventually(lambda: door.connected)
    with Caller(broker.port, "caller/after") as caller:
        caller.publish(REQUEST, chat(), ResponseTopic="caller/after")
        assert caller.next()["type"] == "final"


def test_a_door_that_breaks_down_for_good_is_said_offline_and_can_still_be_stopped(
    broker: Broker, door: MqttDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> float:
        raise ZeroDivisionError

    with Caller(broker.port, STATUS) as caller:
        assert caller.next()["state"] == "online"
        monkeypatch.setattr(door, "_next_wait_s", broken)
        assert caller.next()["state"] == "offline"
    assert not door.connected
    door.stop()


def test_stopping_cancels_what_runs_and_still_answers_it(
    broker: Broker, make_door: MakeDoor, scheduler: ScriptedScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "STOP_GRACE_S", 0.2)
    door = make_door()

    def deaf(playing: Playing) -> None:
        playing.cancelled.wait(10)

    scheduler.script = deaf
    with Caller(broker.port, "caller/stop", STATUS) as caller:
        assert caller.next()["state"] == "online"
        caller.publish(REQUEST, chat(id="s"), ResponseTopic="caller/stop")
        assert eventually(lambda: len(scheduler.played) == 1)
        door.stop()
        assert caller.next()["error"]["code"] == "shutting_down"
        assert caller.next()["state"] == "offline"
    assert scheduler.played[0].cancelled.is_set()


@pytest.mark.parametrize("setting", [{"device_id": "a/b"}, {"device_id": "+"}, {"prefix": ""}, {"prefix": "a//b"}])
def test_a_name_that_cannot_stand_in_a_topic_is_a_configuration_error(setting: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="mqtt") as caught:
        MqttDoor(MqttConfig(host="127.0.0.1", **setting), ScriptedScheduler(), MODEL)  # type: ignore[arg-type]
    assert caught.value.hint


def test_the_default_device_id_is_one_topic_level(make_door: MakeDoor) -> None:
    door = make_door(device_id=None)
    assert door.topics.device
    assert "/" not in door.topics.device
