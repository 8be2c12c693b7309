"""Requests over kills of the daemon and of the broker, by a caller that never asks again."""

from __future__ import annotations

import json
import logging
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.broker import Broker
from tests.daemon.mqtt.conftest import REQUEST, STATUS, chat, eventually

pytestmark = pytest.mark.broker

_log = logging.getLogger(__name__)

# Each process answers with a text of its own, so that two attempts can be told apart.
DAEMON = """
import sys, time, uuid
from pathlib import Path
from edgekit.config import MqttConfig
from edgekit.daemon.mqtt import connection
from edgekit.daemon.mqtt.service import MqttService
from edgekit.generation.engine.worker import EngineWorker
from tests.generation.tiny import echo_model
connection.BACKOFF_FIRST_S, connection.BACKOFF_MAX_S = 0.05, 0.2
model = echo_model(f"{uuid.uuid4().hex[:8]} Paris 法国 🗼", sequence_slots=4, before_step=lambda _: time.sleep(0.005))
worker = EngineWorker(model)
config = MqttConfig(host="127.0.0.1", port=int(sys.argv[1]), device_id="box", coalesce_ms=10)
MqttService(config, worker, worker.info, state=Path(sys.argv[2]), parallel=4).start()
time.sleep(3600)
"""
SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]
REPOSITORY = Path(__file__).parents[3]
PERSISTENT = (
    "allow_anonymous true",
    "persistence true",
    "persistence_location {folder}/",
    "autosave_on_changes true",
    "autosave_interval 1",
    "max_queued_messages 0",
)


class Daemon:
    """The MQTT service in a process that can be killed."""

    def __init__(self, port: int, state: Path) -> None:
        self._command = [sys.executable, "-c", DAEMON, str(port), str(state)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=REPOSITORY)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


class Caller:
    """Sends each request once; its session, and what it has not got rid of, outlive a connection."""

    def __init__(self, port: int) -> None:
        self.messages: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.finals: dict[str, list[bytes]] = defaultdict(list)
        self.errors: list[str] = []
        self.newest = 0
        self.online = False
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, "caller", protocol=paho.MQTTv5)
        client.on_connect = self._on_connect
        client.on_message = lambda _client, _data, message: self._take(bytes(message.payload))
        client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600
        client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        client.loop_start()

    def _on_connect(self, *_: object) -> None:
        self._client.subscribe([("replies/me", 1), (STATUS, 1)])

    def _take(self, payload: bytes) -> None:
        message = json.loads(payload)
        if message["type"] == "status":
            self.online = self.online or message["state"] == "online"
            return
        self.messages[message["id"]].append(message)
        if message["type"] == "final":
            self.newest = max(self.newest, message["attempt"])
            self.finals[message["id"]].append(payload)
        elif message["type"] == "error":
            self.errors.append(message["error"]["code"])

    def ask(self, name: str) -> None:
        body = chat(id=name, reply_to="replies/me", stream=True, temperature=1)
        self._client.publish(REQUEST, json.dumps(body), qos=1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def check(messages: list[dict[str, Any]]) -> None:
    """Check the reply to one request: its attempts grow, and the deltas of each are in order."""
    attempts = [message["attempt"] for message in messages]
    final = messages[-1]
    assert final["attempt"] == max(attempts)
    by_attempt: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for message in messages:
        if message["type"] == "delta" and message["seq"] not in [one["seq"] for one in by_attempt[message["attempt"]]]:
            by_attempt[message["attempt"]].append(message)
    for deltas in by_attempt.values():
        assert [delta["seq"] for delta in deltas] == sorted(delta["seq"] for delta in deltas)
    last = by_attempt[final["attempt"]]
    if len(last) == final["seq"]:  # the broker lost none
        assert "".join(delta["text"] for delta in last) == final["message"]["content"]


@pytest.fixture
def broker(tmp_path: Path, persistent: bool) -> Iterator[Broker]:
    folder = tmp_path / "broker"
    folder.mkdir()
    config = [line.format(folder=folder) for line in PERSISTENT]
    with Broker(folder, config=config if persistent else ["allow_anonymous true", "max_queued_messages 0"]) as running:
        yield running


@pytest.mark.serial
@pytest.mark.parametrize(
    ("jobs", "kills", "of_broker", "persistent"),
    [
        pytest.param(30, 2, False, True, id="few"),
        pytest.param(1000, 20, False, True, id="many", marks=SLOW),
        pytest.param(1000, 20, True, True, id="broker-too", marks=SLOW),
        pytest.param(1000, 20, True, False, id="broker-without-persistence", marks=SLOW),
    ],
)
def test_every_request_that_was_delivered_is_answered(
    tmp_path: Path,
    broker: Broker,
    jobs: int,
    kills: int,
    of_broker: bool,
) -> None:
    rng = random.Random(jobs)  # noqa: S311  a schedule, not a secret
    names = [f"job-{number}" for number in range(jobs)]
    daemon, caller = Daemon(broker.port, tmp_path / "state"), Caller(broker.port)
    daemon.start()
    lost: list[str] = []
    try:
        assert eventually(lambda: caller.online, 60)
        for name in names:
            caller.ask(name)
        killed_ms = 0
        for number in range(kills):
            done = len(caller.finals)

            def answers(done: int = done, killed_ms: int = killed_ms) -> bool:
                """Whether the daemon has begun and answered a request since it was killed: attempts have the time."""
                return len(caller.finals) > done and caller.newest > killed_ms

            progress = eventually(answers, 60)
            if of_broker and not progress:
                break  # the rest is lost
            # One that answers nothing between two ends blames the request that was running.
            assert progress
            time.sleep(rng.uniform(0.0, 0.5))
            if of_broker and number % 2:
                broker.stop(signal.SIGKILL)
                broker.start()
            else:
                daemon.kill()
                killed_ms = time.time_ns() // 1_000_000
                daemon.start()
        if of_broker:
            end = time.monotonic() + 900
            count = -1
            while len(caller.finals) < jobs and time.monotonic() < end and count < len(caller.finals):
                count = len(caller.finals)
                eventually(lambda: len(caller.finals) == jobs, 15)
            # What only the broker had when it was killed: requests, and answers that it had taken.
            lost = [name for name in names if name not in caller.finals]
            _log.warning("%d of %d were lost by kills of the broker", len(lost), jobs)
            for name in lost:
                caller.ask(name)
        assert eventually(lambda: len(caller.finals) == jobs, 60 if jobs < 100 else 900)
    finally:
        caller.close()
        daemon.kill()
    assert caller.errors == []
    assert len(lost) <= jobs // 4
    assert [name for name, finals in caller.finals.items() if len(set(finals)) != 1] == [], "repeated finals are equal"
    for name in names:
        check(caller.messages[name])
    attempts = [len({message["attempt"] for message in caller.messages[name]}) for name in names]
    assert max(attempts) > 1, "no stream was interrupted: nothing was tested"
