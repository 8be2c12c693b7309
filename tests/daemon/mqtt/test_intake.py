"""Requests that take long to prepare, or end the daemon meanwhile, through a real mosquitto."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edgekit.daemon.mqtt import connection, receipts
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
def test_a_request_is_acknowledged_before_it_is_prepared_and_one_delivered_again_is_answered_once(
    broker: Broker,
    service: MqttService,
    worker: Slow,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
) -> None:
    monkeypatch.setattr(connection, "BACKOFF_FIRST_S", 0.05)
    with Caller(broker.port, "caller/d") as caller:
        with monkeypatch.context() as lost:
            # As if the connection broke before the acknowledgement had left.
            lost.setattr(receipts.Receipts, "settle", lambda *_: None)
            caller.publish(REQUEST, chat(max_tokens=SLOW, **given), ResponseTopic="caller/d")
            assert worker.preparing.wait(20)
        for reconnects in (1, 2):
            # What paho does when a read fails.
            assert service._connection._client is not None
            service._connection._client._sock_close()
            service._connection.wake()
            assert eventually(lambda reconnects=reconnects: service.stats().reconnects == reconnects)  # type: ignore[misc]
            assert eventually(lambda: service.stats().repeated == 1), "the broker delivers it again, once"
            # This one is read after the acknowledgement has been sent.
            caller.publish(REQUEST, chat(deadline_s="soon"), ResponseTopic="caller/d")
            assert caller.next()["error"]["param"] == "deadline_s"
        worker.go_on.set()
        # An error may come again, whose acknowledgement was lost with the connection.
        assert caller.until("final")
        assert caller.silent()
    assert len(worker.played) == service.stats().repeated == 1


@pytest.mark.broker
def test_a_request_not_yet_prepared_when_the_daemon_stops_is_answered_after_the_next_start(
    broker: Broker, make_service: MakeService, worker: Slow, tmp_path: Path
) -> None:
    service = make_service(state=tmp_path)
    with Caller(broker.port, "caller/n") as caller:
        caller.publish(REQUEST, chat(id="slow", max_tokens=SLOW), ResponseTopic="caller/n")
        assert worker.preparing.wait(20)
        caller.publish(REQUEST, chat(id="behind"), ResponseTopic="caller/n")
        assert eventually(lambda: len(service._jobs.open) == 2)
        service.stop()
        assert caller.silent(0.2)
        worker.go_on.set()
        make_service(state=tmp_path)
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
def test_a_request_that_ends_the_daemon_is_refused_once_it_has_done_so_twice_alone(
    broker: Broker, tmp_path: Path, given: dict[str, str]
) -> None:
    command = [sys.executable, "-c", DEADLY, str(broker.port), str(tmp_path / "state")]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=Path(__file__).parents[3])

    with Caller(broker.port, "caller/x") as caller, Caller(broker.port, STATUS) as watcher:
        daemon = start()
        try:
            assert watcher.next(20)["state"] == "online"
            caller.publish(REQUEST, chat(max_tokens=13, **given), ResponseTopic="caller/x")
            caller.publish(REQUEST, chat(id="innocent"), ResponseTopic="caller/x")
            ends, replies = 0, dict[str, Any]()
            while len(replies) < 2:
                if daemon.poll() is not None:
                    ends += 1
                    # The two may have been running together the first time.
                    assert ends <= 3
                    daemon = start()
                with suppress(pytest.fail.Exception):
                    reply = caller.next(0.2)
                    replies[reply["type"]] = reply
            assert ends >= 2
            assert replies["error"]["error"]["code"] == "runner_failed"
            assert replies["final"]["id"] == "innocent"
            # A caller that repeats it does not end the daemon either, and the broker has nothing left.
            caller.publish(REQUEST, chat(max_tokens=13, **given), ResponseTopic="caller/x")
            assert caller.next()["error"]["code"] == "runner_failed"
            assert caller.silent(0.5)
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
