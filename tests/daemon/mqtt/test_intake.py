"""Requests that take long to prepare, or end the daemon meanwhile, through a real mosquitto."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.daemon.mqtt import connection
from edgekit.daemon.mqtt import service as service_module
from edgekit.daemon.mqtt.service import MqttService
from edgekit.generation.engine.worker import OnEvent
from edgekit.generation.types import ChatRequest
from tests.broker import Broker, Caller
from tests.daemon.mqtt.conftest import CANCEL, REQUEST, STATUS, MakeService, chat, eventually, outcomes
from tests.daemon.mqtt.scripted import Playing, ScriptedWorker, wait_for_cancel

SLOW = 13
"""`max_tokens` of a request whose preparation waits for the test."""


class Slow(ScriptedWorker):
    def __init__(self) -> None:
        super().__init__()
        self.preparing = threading.Event()
        self.go_on = threading.Event()

    def submit(self, request: ChatRequest, on_event: OnEvent) -> Playing:
        if request.max_tokens == SLOW:
            self.preparing.set()
            self.go_on.wait(20)
        return super().submit(request, on_event)


@pytest.fixture
def worker() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.go_on.set()
    slow.stop()


@pytest.mark.broker
def test_while_a_request_is_prepared_others_stream_and_are_cancelled_and_presence_is_repaired(
    broker: Broker, service: MqttService, worker: Slow
) -> None:
    worker.script = wait_for_cancel
    with Caller(broker.port, "caller/a") as caller, Caller(broker.port, STATUS) as watcher:
        online = watcher.next()
        caller.publish(REQUEST, chat(id="running", stream=True), ResponseTopic="caller/a")
        caller.next()
        caller.publish(REQUEST, chat(id="slow", max_tokens=SLOW), ResponseTopic="caller/a")
        assert worker.preparing.wait(20)
        assert [caller.next()["id"] for _ in range(3)] == ["running"] * 3
        watcher.publish(STATUS, {**online, "state": "offline", "session": "older-1"}, retain=True)
        assert watcher.next()["state"] == "offline"
        assert watcher.next() == online
        caller.publish(CANCEL, {"id": "running"}, ResponseTopic="caller/a")
        assert caller.until("final")[-1]["finish_reason"] == "cancelled"
        assert eventually(lambda: service.seconds_since_heartbeat() < 2)
        assert service.seconds_preparing() > 0.5
        # Cancelled before it was submitted.
        caller.publish(CANCEL, {"id": "slow"}, ResponseTopic="caller/a")
        assert caller.silent()
        worker.go_on.set()
        final = caller.until("final")[-1]
        assert (final["id"], final["finish_reason"]) == ("slow", "cancelled")
    assert eventually(lambda: service.seconds_preparing() == 0)


@pytest.mark.broker
@pytest.mark.parametrize("given", [{"id": "slow"}, {}])
def test_a_request_delivered_again_while_it_is_prepared_is_answered_once(
    broker: Broker,
    service: MqttService,
    worker: Slow,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
) -> None:
    monkeypatch.setattr(connection, "BACKOFF_FIRST_S", 0.05)
    with Caller(broker.port, "caller/d") as caller:
        caller.publish(REQUEST, chat(max_tokens=SLOW, **given), ResponseTopic="caller/d")
        assert worker.preparing.wait(20)
        service._connection.drop()
        assert eventually(lambda: service.stats().reconnects == 1)
        assert eventually(lambda: service.stats().repeated == 1), "the broker delivers it again"
        worker.go_on.set()
        assert caller.next()["type"] == "final"
        assert caller.silent()
    assert len(worker.played) == 1
    # It is acknowledged: no later connection gets it again.
    service._connection.drop()
    assert eventually(lambda: service.stats().reconnects == 2)
    assert not eventually(lambda: len(worker.played) > 1, 0.5)


@pytest.mark.broker
def test_a_request_not_yet_prepared_when_the_daemon_stops_is_answered_after_the_next_start(
    broker: Broker, make_service: MakeService, worker: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "STOP_GRACE_S", 0.2)
    service = make_service()
    with Caller(broker.port, "caller/n") as caller:
        caller.publish(REQUEST, chat(id="slow", max_tokens=SLOW), ResponseTopic="caller/n")
        assert worker.preparing.wait(20)
        caller.publish(REQUEST, chat(id="behind"), ResponseTopic="caller/n")
        assert eventually(lambda: len(service._jobs.open) == 2)
        service.stop()
        assert caller.silent(0.2)
        worker.go_on.set()
        make_service()
        assert {caller.until("final")[-1]["id"] for _ in range(2)} == {"slow", "behind"}


# Ends like a crash of a library, and not of Python.
DEADLY = """
import os, sys, time
from pathlib import Path
from edgekit.config import MqttConfig
from edgekit.daemon.mqtt.service import MqttService
from tests.daemon.mqtt.conftest import MODEL
from tests.daemon.mqtt.scripted import ScriptedWorker
class Deadly(ScriptedWorker):
    def submit(self, request, on_event):
        if request.max_tokens == 13:
            os._exit(1)
        return super().submit(request, on_event)
config = MqttConfig(host="127.0.0.1", port=int(sys.argv[1]), device_id="box")
MqttService(config, Deadly(), MODEL, state=Path(sys.argv[2])).start()
time.sleep(600)
"""


@pytest.mark.broker
@pytest.mark.parametrize("given", [{"id": "deadly"}, {}])
def test_a_request_that_ends_the_daemon_is_refused_at_the_third_start(
    broker: Broker, tmp_path: Path, given: dict[str, str]
) -> None:
    command = [sys.executable, "-c", DEADLY, str(broker.port), str(tmp_path / "state")]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=Path(__file__).parents[3])

    with Caller(broker.port, "caller/x") as caller, Caller(broker.port, STATUS) as watcher:
        daemon = start()
        assert watcher.next(20)["state"] == "online"
        caller.publish(REQUEST, chat(max_tokens=13, **given), ResponseTopic="caller/x")
        caller.publish(REQUEST, chat(id="innocent"), ResponseTopic="caller/x")
        for _ in range(2):
            assert daemon.wait(20) == 1
            daemon = start()
        try:
            (error,), (final,) = caller.until("error", 20), caller.until("final", 20)
            assert error["error"]["code"] == "runner_failed"
            assert final["id"] == "innocent"
            # A caller that repeats it does not end the daemon either, and the broker has nothing left.
            caller.publish(REQUEST, chat(max_tokens=13, **given), ResponseTopic="caller/x")
            assert caller.next()["error"]["code"] == "runner_failed"
            # The acknowledgement follows the reply; a daemon killed between the two answers once more.
            assert caller.silent(1.0)
        finally:
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
        daemon = start()
        try:
            assert caller.silent(2.0)
        finally:
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()


@pytest.mark.broker
@pytest.mark.usefixtures("service")
def test_a_refused_request_is_counted_once(broker: Broker, service: MqttService) -> None:
    with Caller(broker.port, "caller/c") as caller:
        caller.publish(REQUEST, chat(temperature=9), ResponseTopic="caller/c")
        assert caller.next()["error"]["code"] == "invalid_request"
    assert outcomes(service) == {"invalid_request": 1}
