"""Whatever state the first build of an engine is in, everything that tells of it tells the same.

The table is `tell`: the state in the middle, what it must say on the right. Builder, TensorRT and driver are doubles;
broker, HTTP and the service manager's socket are real.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgekit.daemon import engine_build, engine_start, engine_switch
from edgekit.daemon.app import Daemon
from edgekit.daemon.notify import Notifier
from edgekit.errors import RunnerError
from edgekit.generation import first_build
from edgekit.memory import GIB
from edgekit.runners.tensorrt.store import EngineStore
from tests.broker import Broker, Caller
from tests.daemon.conftest import MakeDaemon
from tests.daemon.manager import Manager
from tests.daemon.mqtt.conftest import eventually
from tests.runners.tensorrt.builder_double import BuilderDouble

pytestmark = pytest.mark.broker

WITHIN_S = 120.0
SAID = {
    "waiting": "waiting for another process that builds a TensorRT engine",
    "building": "building the TensorRT engine, 37 %",
    "loading": "loading the TensorRT engine",
}
PERCENT = {"waiting": 0, "building": 37, "loading": 100}
OFF = "no engine was built, and building is switched off (generation.build_engine)"
NO_DRIVER = "this machine has no NVIDIA driver"


@dataclass(frozen=True)
class Tells:
    """What everything must tell: runner in use (None before it is loaded), phase (None: none), and why no engine."""

    runner: str | None
    phase: str | None = None
    reason: str | None = None


def _at(phase: str | None, percent: int) -> str | None:
    """A phase, if it is as far as it should be."""
    return phase if phase is None or percent == PERCENT[phase] else f"{phase}, {percent} %"


class Surfaces:
    """Everything that tells of a daemon: its service manager, its broker, HTTP and the log."""

    def __init__(self, daemon: Daemon, manager: Manager, caller: Caller, log: pytest.LogCaptureFixture) -> None:
        self.daemon = daemon
        self.log = log
        self.status: dict[str, Any] = {}
        self.replies: list[dict[str, Any]] = []
        self.notified = ""
        self._manager, self._caller = manager, caller
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        # The daemon waits where its messages are not read.
        while True:
            try:
                said = self._manager.receive()
            except TimeoutError:
                continue
            except OSError:
                return
            for line in said.splitlines():
                if line.startswith("STATUS="):
                    self.notified = line.removeprefix("STATUS=")

    def get(self, path: str) -> httpx.Response:
        assert self.daemon._http is not None
        return httpx.get(f"{self.daemon._http.url}{path}", timeout=30)

    def receive(self) -> None:
        while not self._caller._inbox.empty():
            message = self._caller.next()
            if message["type"] == "status":
                self.status = message
            else:
                self.replies.append(message)

    def tells(self, wanted: Tells) -> list[str]:
        """What does not tell so."""
        self.receive()
        ready = self._readyz()
        said = {
            "readyz": ready,
            "health": self._health(ready),
            "metrics": self._metrics(),
            "mqtt": self._mqtt(),
            "notify": self._notify(ready),
        }
        return [f"{name}: {tells}" for name, tells in said.items() if tells != wanted]

    def _phase_of(self, text: str) -> str | None:
        return next((phase for phase, words in SAID.items() if words in text), None)

    def _readyz(self) -> Tells:
        reply = self.get("/readyz")
        assert self.get("/healthz").status_code == 200, "none of these states is a reason to restart"
        if reply.status_code == 503:
            return Tells(None, self._phase_of(reply.text))
        first, *rest = reply.text.splitlines()
        reasons = [line.removeprefix("not on tensorrt: ") for line in rest if line.startswith("not on tensorrt: ")]
        runner = first.removeprefix("ready, on ").partition(" (")[0]
        return Tells(runner, self._phase_of(first), *reasons)

    def _health(self, ready: Tells) -> Tells:
        """It only says whether the daemon answers, and what it does before: the rest is taken from `/readyz`."""
        reply = self.get("/health")
        if reply.status_code == 200:
            return ready
        return Tells(None, self._phase_of(reply.json()["error"]["message"]))

    def _metrics(self) -> Tells:
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        values = {(one.name, *one.labels.values()): one.value for one in samples}
        phase = next((one for one in SAID if values.get(("edgekit_engine_build", one)) == 1), None)
        percent = round(100 * values.get(("edgekit_engine_build_ratio",), 1.0))
        runner = next((one.labels.get("runner") for one in samples if one.name == "edgekit_model_info"), None)
        rejected = [one.labels for one in samples if one.name == "edgekit_rejected_runner_info"]
        reasons = [labels["reason"] for labels in rejected if labels["runner"] == "tensorrt"]
        return Tells(runner and runner.partition(" (")[0], _at(phase, percent), *reasons)

    def _mqtt(self) -> Tells:
        if not self.status:
            return Tells(None, "no status")
        engine, runner = self.status.get("engine"), self.status["runner"]
        phase = _at(engine["phase"], engine["percent"]) if engine else None
        reasons = {one["runner"]: one["reason"] for one in self.status["rejected_runners"]}
        assert self.status["state"] == "online"
        return Tells(runner and runner.partition(" (")[0], phase, reasons.get("tensorrt"))

    def _notify(self, ready: Tells) -> Tells:
        """It has no reasons: they are taken from `/readyz`."""
        phase = self._phase_of(self.notified)
        if not self.notified.startswith("serving "):
            return Tells(None, phase)
        return Tells(self.notified.partition(" on ")[2].partition(" (")[0], phase, ready.reason)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


Observe = Callable[..., Surfaces]


@pytest.fixture
def observe(
    make_daemon: MakeDaemon,
    broker: Broker,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Observe]:
    """Returns a function that makes a daemon which is observed, and starts it on a thread."""
    caplog.set_level("INFO", "edgekit")
    monkeypatch.setattr(engine_build, "REPORT_S", 0.2)
    closed: list[Callable[[], None]] = []

    def make(**options: Any) -> Surfaces:
        name = f"{tmp_path.name}-{len(closed)}"
        manager = Manager(str(tmp_path / f"notify{len(closed)}"))
        caller = Caller(broker.port, f"edgekit/{name}/status", f"replies/{name}")
        daemon = make_daemon(broker.port, device_id=name, notify=Notifier({"NOTIFY_SOCKET": manager.name}), **options)
        surfaces = Surfaces(daemon, manager, caller, caplog)
        thread = threading.Thread(target=daemon.start)
        thread.start()
        closed.append(lambda: _close(daemon, thread, caller, manager))
        assert eventually(lambda: daemon._http is not None and daemon._http.port != 0, WITHIN_S)
        return surfaces

    yield make
    for close in closed:
        close()


def _close(daemon: Daemon, thread: threading.Thread, caller: Caller, manager: Manager) -> None:
    daemon.stop(drain_s=0.0)
    thread.join(WITHIN_S)
    caller.close()
    manager.close()


def tell(surfaces: Surfaces, wanted: Tells) -> None:
    """Assert that everything comes to tell this."""
    pause = threading.Event()
    assert eventually(lambda: not surfaces.tells(wanted) or pause.wait(0.1), WITHIN_S), surfaces.tells(wanted)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Loading an engine waits for it."""
    event = threading.Event()

    def wait_in(module: Any, name: str, when: Callable[[Any], bool]) -> None:
        real = getattr(module, name)

        def load(*arguments: Any, **options: Any) -> Any:
            assert not when(options) or event.wait(WITHIN_S)
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, load)

    wait_in(engine_switch, "load_other_runner", lambda _: True)
    wait_in(engine_start, "open_model", lambda _: any(one.is_dir() for one in EngineStore().folder.glob("[0-9a-f]*")))
    yield event
    event.set()


@pytest.mark.parametrize("beside", [True, False])
def test_a_build_is_followed_from_the_queue_to_the_engine(
    observe: Observe,
    builder: BuilderDouble,
    held: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    *,
    beside: bool,
) -> None:
    if not beside:
        # Enough for the builder of a tiny model, and not for the model's runner too.
        monkeypatch.setattr(first_build, "available_bytes", lambda: int(0.99 * GIB))
    before = Tells("cpu", reason="its engine is being built") if beside else Tells(None)
    with closing(iter(EngineStore()._locked(None).gen)) as other_process:
        next(other_process)
        surfaces = observe()
        tell(surfaces, Tells(before.runner, "waiting", before.reason))
    tell(surfaces, Tells(before.runner, "building", before.reason))
    if not beside:
        refused_over_http(surfaces)
        publish(surfaces)
    builder.go_on.set()
    tell(surfaces, Tells(before.runner, "loading", before.reason))
    held.set()
    tell(surfaces, Tells("tensorrt"))
    for phase, words in SAID.items():
        assert words.partition(",")[0] in surfaces.log.text, phase
    if beside:
        publish(surfaces)
    assert reply(surfaces)["type"] == "final"


def refused_over_http(surfaces: Surfaces) -> None:
    """Over MQTT, requests that come before the model is loaded wait."""
    daemon = surfaces.daemon
    assert daemon._http is not None
    over_http = httpx.post(f"{daemon._http.url}/v1/completions", json={"prompt": "Hello"}, timeout=30)
    assert over_http.status_code == 503
    error = over_http.json()["error"]
    assert (error["code"], over_http.headers["Retry-After"]) == ("not_ready", "5")
    assert error["message"] == f"the model is not loaded yet: {SAID['building']} (retry in a moment)"


def answered(surfaces: Surfaces) -> None:
    publish(surfaces)
    assert reply(surfaces)["type"] == "final"


def publish(surfaces: Surfaces) -> None:
    """Ask over MQTT."""
    mqtt = surfaces.daemon._mqtt
    assert mqtt is not None
    surfaces.replies.clear()
    reply_to = f"replies/{mqtt.topics.device}"
    surfaces._caller.publish(mqtt.topics.request, {"prompt": "Hello", "max_tokens": 2, "reply_to": reply_to})


def reply(surfaces: Surfaces) -> dict[str, Any]:
    """The reply to a request over MQTT."""

    def came() -> bool:
        surfaces.receive()
        return bool(surfaces.replies)

    assert eventually(came, WITHIN_S)
    return surfaces.replies[0]


@pytest.mark.parametrize("beside", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_failure_is_told_at_once_and_by_the_next_start_which_tries_no_more(
    observe: Observe, builder: BuilderDouble, monkeypatch: pytest.MonkeyPatch, *, beside: bool
) -> None:
    if not beside:
        monkeypatch.setattr(first_build, "available_bytes", lambda: int(0.99 * GIB))
    builder.fails = RunnerError("Myelin gave up", hint="another number of segments", code="build_failed")
    builder.go_on.set()
    surfaces = observe()
    tell(surfaces, Tells("cpu", reason="Myelin gave up"))
    assert "Myelin gave up (hint: another number of segments)" in surfaces.log.text
    surfaces.daemon.stop(drain_s=0.0)
    surfaces.log.clear()
    again = observe()
    reason = "Myelin gave up (at an earlier start; not tried again)"
    tell(again, Tells("cpu", reason=reason))
    assert reason in again.log.text
    assert len(builder.builds) == 1


def test_where_building_is_switched_off_that_is_the_reason(observe: Observe, builder: BuilderDouble) -> None:
    surfaces = observe(build_engine=False)
    tell(surfaces, Tells("cpu", reason=OFF))
    assert f"not on tensorrt: {OFF}" in surfaces.log.text
    assert "edgekit build " in surfaces.log.text
    assert "`generation.build_engine: true`, and no `--no-build`" in surfaces.log.text
    assert builder.builds == []


@pytest.fixture
def no_driver(builder: BuilderDouble, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001  after its patches
    """A GPU is found, and no driver: as in a container for which only nvidia-smi was mounted."""

    def check_driver() -> None:
        raise RunnerError(NO_DRIVER, hint="in a container, use the NVIDIA runtime")

    monkeypatch.setattr(first_build, "check_driver", check_driver)


@pytest.mark.usefixtures("no_driver")
def test_nothing_is_built_where_no_driver_can_load_it(observe: Observe, builder: BuilderDouble) -> None:
    surfaces = observe()
    tell(surfaces, Tells("cpu", reason=NO_DRIVER))
    assert f"no engine is built: {NO_DRIVER} (hint: in a container, use the NVIDIA runtime)" in surfaces.log.text
    assert builder.builds == []


@pytest.mark.usefixtures("no_driver")
def test_a_fixed_runner_without_a_driver_is_refused_at_once(make_daemon: MakeDaemon, builder: BuilderDouble) -> None:
    with pytest.raises(RunnerError, match=f"this bundle cannot run on a TensorRT engine: {NO_DRIVER}") as raised:
        make_daemon(runner="tensorrt").start()
    assert raised.value.hint == "in a container, use the NVIDIA runtime"
    assert builder.builds == []


def test_a_fixed_runner_whose_engine_must_not_be_built_is_refused_with_that(make_daemon: MakeDaemon) -> None:
    with pytest.raises(RunnerError, match=r"no engine was built, and building is switched off") as raised:
        make_daemon(runner="tensorrt", build_engine=False).start()
    assert "edgekit build" in (raised.value.hint or "")
