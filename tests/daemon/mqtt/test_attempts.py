"""Replies over crashes: a caller that repeats its requests gets each answered, and never two attempts mixed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edgekit.client import Restarted
from edgekit.client.reply import ReplyReader
from edgekit.daemon.mqtt.attempts import Attempts
from edgekit.errors import EdgekitError
from edgekit.generation.types import Delta, Failure, Finished
from tests.broker import Broker, Caller
from tests.daemon.mqtt.conftest import REQUEST, MakeService, chat, eventually
from tests.daemon.mqtt.scripted import Playing, ScriptedWorker

# Each process answers with a text of its own, as a model without a seed would.
DAEMON = """
import sys, time, uuid
from pathlib import Path
from edgekit.config import MqttConfig
from edgekit.daemon.mqtt.service import MqttService
from edgekit.generation.engine.worker import EngineWorker
from tests.generation.tiny import echo_model
answer = f"{uuid.uuid4().hex[:8]} Paris 法国 🗼 " * 8
model = echo_model(answer, sequence_slots=4, before_step=lambda _: time.sleep(0.003))
worker = EngineWorker(model, max_queue=500)
config = MqttConfig(host="127.0.0.1", port=int(sys.argv[1]), device_id="box", coalesce_ms=10)
MqttService(config, worker, worker.info, state=Path(sys.argv[2])).start()
time.sleep(3600)
"""
REPOSITORY = Path(__file__).parents[3]


def test_attempts_grow_over_restarts_and_over_many_requests(tmp_path: Path) -> None:
    last = 0
    for _ in range(4):
        attempts = Attempts(tmp_path / "attempts")
        for _ in range(1500):
            number = attempts.next()
            assert number > last
            last = number


@pytest.mark.parametrize("damage", [b"", b"\x00\x00", b"many", b"\xff"])
def test_attempts_grow_even_if_the_file_is_damaged(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "attempts"
    last = Attempts(path).next()
    time.sleep(0.01)  # no daemon starts twice in a millisecond
    path.write_bytes(damage)
    assert Attempts(path).next() > last


def numbers_of(path: Path | None, count: int = 50) -> list[int]:
    """The numbers of one start, which lasts as long as a short one does."""
    attempts = Attempts(path)
    numbers = [attempts.next() for _ in range(count)]
    assert numbers == sorted(set(numbers))
    time.sleep(0.2)
    return numbers


def test_attempts_grow_over_restarts_even_if_they_cannot_be_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "missing" / "attempts"
    assert numbers_of(path)[-1] < numbers_of(path)[0]
    assert "cannot be written" in caplog.text


def test_attempts_grow_over_restarts_without_a_state_folder() -> None:
    assert numbers_of(None)[-1] < numbers_of(None)[0]


def test_attempts_grow_over_restarts_whatever_happens_to_the_file_between_them(tmp_path: Path) -> None:
    """The disk is read-only for one start; a container is made anew; an old backup is restored."""
    path = tmp_path / "state" / "attempts"
    path.parent.mkdir()
    seen = numbers_of(path)
    backup = path.read_bytes()
    path.parent.rename(tmp_path / "away")
    seen += numbers_of(path)
    (tmp_path / "away").rename(path.parent)
    seen += numbers_of(path)
    path.unlink()
    seen += numbers_of(path)
    path.write_bytes(backup)
    seen += numbers_of(path)
    assert seen == sorted(set(seen))


def test_attempts_grow_over_restarts_though_the_clock_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = numbers_of(tmp_path / "attempts")
    for boot in range(3):
        monkeypatch.setattr(time, "time_ns", lambda boot=boot: boot * 1_000_000_000)
        seen += numbers_of(tmp_path / "attempts")
    assert seen == sorted(set(seen))
    assert seen[-1] < 2**53, "a reader with 64-bit floats tells them apart"


@pytest.mark.broker
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


@pytest.mark.broker
def test_the_numbers_of_a_service_are_kept_in_its_own_folder(tmp_path: Path, make_service: MakeService) -> None:
    make_service(state=tmp_path / "state")
    assert eventually((tmp_path / "state" / "mqtt" / "edgekit-box").is_dir)


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


class Job:
    """A request and its reply so far."""

    def __init__(self) -> None:
        self.reader = ReplyReader()
        self.text = ""
        self.progress = 0.0
        self.restarts = self.messages = 0
        self.content: str | None = None
        self.finals = 0

    def take(self, message: dict[str, Any]) -> None:
        self.progress = time.monotonic()
        self.messages += 1
        if self.content is not None:
            return
        for event in self.reader.read(message):
            if isinstance(event, Restarted):
                self.restarts += 1
                self.text = ""
            elif isinstance(event, Delta):
                self.text += event.text
            else:
                assert isinstance(event, Finished)
                self.finals += 1
                self.content = message["message"]["content"]


class Retrying:
    """A caller that repeats a request until it is answered, as docs/mqtt.md tells it to."""

    def __init__(self, port: int, jobs: int) -> None:
        self.jobs = {f"job-{number}": Job() for number in range(jobs)}
        self.problems: list[str] = []
        self._lock = threading.Lock()
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, "retrying", protocol=paho.MQTTv5)
        client.on_connect = self._on_connect
        client.on_message = lambda _client, _data, message: self._take(json.loads(message.payload))
        client.reconnect_delay_set(1, 1)
        client.connect("127.0.0.1", port)
        client.loop_start()

    def _on_connect(self, *_: object) -> None:
        self._client.subscribe("replies/me", 1)

    def _take(self, message: dict[str, Any]) -> None:
        with self._lock:
            try:
                self.jobs[message["id"]].take(message)
            except EdgekitError as error:
                self.problems.append(error.code)

    def ask(self, unheard_s: float) -> int:
        """Send every request that has had no message for so long; returns how many are not answered."""
        with self._lock:
            still = {name: job for name, job in self.jobs.items() if job.content is None}
            quiet = [name for name, job in still.items() if time.monotonic() - job.progress >= unheard_s]
            for name in quiet:
                still[name].progress = time.monotonic()
        if self._client.is_connected():
            for name in quiet:
                body = chat(id=name, reply_to="replies/me", stream=True)
                self._client.publish(REQUEST, json.dumps(body), qos=1)
        return len(still)

    def received(self) -> int:
        with self._lock:
            return sum(job.messages for job in self.jobs.values())

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def crashing(tmp_path: Path, broker: Broker) -> Iterator[Daemon]:
    daemon = Daemon(broker.port, tmp_path / "state")
    daemon.start()
    yield daemon
    daemon.kill()


@pytest.mark.broker
@pytest.mark.serial
@pytest.mark.parametrize(
    ("jobs", "kills"),
    [
        pytest.param(8, 3, id="few"),
        pytest.param(200, 12, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_over_kills_of_daemon_and_broker_each_job_is_answered_once_and_unmixed(
    broker: Broker, crashing: Daemon, jobs: int, kills: int
) -> None:
    rng = random.Random(jobs)  # noqa: S311  a schedule, not a secret
    caller = Retrying(broker.port, jobs)
    try:
        for number in range(kills):
            # Killed while it streams.
            before = caller.received()

            def streams(before: int = before) -> bool:
                return not caller.ask(1.0) or caller.received() > before

            assert eventually(streams, 30)
            time.sleep(rng.uniform(0.05, 0.4))
            if number % 3 == 1:
                broker.stop(signal.SIGKILL)
                broker.start()
            else:
                crashing.kill()
                crashing.start()
        end = time.monotonic() + (30 if jobs < 100 else 600)
        while (open_jobs := caller.ask(2.0)) and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        caller.close()
    assert open_jobs == 0, f"{open_jobs} jobs are not answered"
    assert caller.problems == []
    assert [name for name, job in caller.jobs.items() if job.finals != 1] == []
    assert [name for name, job in caller.jobs.items() if job.text != job.content] == []
    assert sum(job.restarts for job in caller.jobs.values()) > 0, "no stream was interrupted: nothing was tested"
