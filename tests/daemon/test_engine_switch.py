"""The daemon builds the engine and switches to it, over doubles of TensorRT, its builder and the CUDA driver."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit.daemon import engine_switch
from edgekit.daemon.app import Daemon
from edgekit.daemon.retry import StoppedError
from edgekit.errors import RunnerError
from edgekit.generation import first_build
from edgekit.memory import GIB
from edgekit.runners.base import Chunk
from edgekit.runners.cpu.select import Unavailable
from edgekit.runners.tensorrt.build_record import FILE, MAX_UNFINISHED
from tests.broker import Broker, Caller
from tests.daemon.conftest import MakeDaemon
from tests.daemon.mqtt.conftest import REQUEST, eventually
from tests.runners.cuda.driver_double import DriverDouble
from tests.runners.tensorrt.builder_double import BuilderDouble

WITHIN_S = 120.0


def url(daemon: Daemon) -> str:
    assert daemon._http is not None
    return daemon._http.url


def ready(daemon: Daemon) -> tuple[int, str]:
    reply = httpx.get(f"{url(daemon)}/readyz", timeout=30)
    return reply.status_code, reply.text


def serves_on(daemon: Daemon, runner: str) -> bool:
    return eventually(lambda: ready(daemon)[1].startswith(f"ready, on {runner} (") and not building(daemon), WITHIN_S)


def building(daemon: Daemon) -> bool:
    return daemon._engine.state is not None


def ask(daemon: Daemon, max_tokens: int = 4) -> dict[str, Any]:
    body = {"prompt": "Hello", "max_tokens": max_tokens, **unending(daemon)}
    reply = httpx.post(f"{url(daemon)}/v1/completions", json=body, timeout=WITHIN_S)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    assert answer["usage"]["completion_tokens"] == max_tokens
    return answer


def unending(daemon: Daemon) -> dict[str, Any]:
    """Fields of a request whose answer has all its tokens."""
    assert daemon._worker is not None
    return {"temperature": 0, "logit_bias": {str(token): -100 for token in daemon._worker.model.eos_token_ids}}


def metric(daemon: Daemon, name: str) -> list[str]:
    lines = httpx.get(f"{url(daemon)}/metrics", timeout=30).text.splitlines()
    return [line for line in lines if line.startswith(name)]


class Steps:
    """The steps of the runner that answers: after a few they wait until they are released."""

    AFTER = 8

    def __init__(self, daemon: Daemon) -> None:
        assert daemon._worker is not None
        self.worker = daemon._worker
        self.runner: Any = self.worker.model.runner
        self.slots: set[int] = set()
        self._count = 0
        self._free = threading.Event()
        self._run = self.runner.run
        setattr(self.runner, "run", self.run)  # noqa: B010  on the instance

    def run(self, chunks: Sequence[Chunk]) -> Any:
        self._count += 1
        if self._count > self.AFTER:
            self._free.wait(WITHIN_S)
        self.slots |= {chunk.slot for chunk in chunks}
        return self._run(chunks)

    def wait(self) -> None:
        """Return once a step waits."""
        assert eventually(lambda: self._count > self.AFTER, WITHIN_S)

    def release(self) -> None:
        self.slots.clear()
        self._free.set()


class Stream(threading.Thread):
    """A streamed answer."""

    def __init__(self, daemon: Daemon, tokens: int) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._url = f"{url(daemon)}/v1/completions"
        self._body = {"prompt": "Hello", "max_tokens": tokens, "stream": True, **unending(daemon)}
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=WITHIN_S) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: "):
                    self.lines.append(line.removeprefix("data: "))

    def finished(self) -> dict[str, Any]:
        """Its last chunk."""
        self.join(WITHIN_S)
        assert self.lines[-1] == "[DONE]"
        last: dict[str, Any] = json.loads(self.lines[-2])
        return last


class Asking(threading.Thread):
    """A request that waits for its answer."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__()
        self._daemon = daemon
        self.answer: dict[str, Any] | None = None
        self.start()

    def run(self) -> None:
        self.answer = ask(self._daemon)


@pytest.mark.broker
def test_answers_come_before_during_and_after_the_switch_and_everything_names_the_new_runner(
    make_daemon: MakeDaemon, builder: BuilderDouble, driver: DriverDouble, tmp_path: Path
) -> None:
    (tmp_path / "broker").mkdir()
    with Broker(tmp_path / "broker") as broker, Caller(broker.port, "edgekit/#", "replies/a") as caller:
        daemon = make_daemon(broker.port)
        daemon.start()
        status = next(message for message in iter(caller.next, None) if message["type"] == "status")
        assert status["runner"].startswith("cpu")
        assert status["engine"]["phase"] == "building"
        assert eventually(lambda: "building the TensorRT engine, 37 %" in ready(daemon)[1])
        code, text = ready(daemon)
        assert code == 200
        assert text.startswith("ready, on cpu (")
        assert "); building the TensorRT engine, 37 %\nnot on tensorrt: its engine is being built\n" in text
        assert 'edgekit_engine_build{phase="building"} 1.0' in metric(daemon, "edgekit_engine_build")
        assert "edgekit_engine_build_ratio 0.37" in metric(daemon, "edgekit_engine_build")
        ask(daemon)

        # An answer runs when the engine is ready, and requests come before it ends.
        steps = Steps(daemon)
        stream = Stream(daemon, 100)
        steps.wait()
        builder.go_on.set()
        assert eventually(lambda: steps.worker._switch is not None, WITHIN_S)
        waiting = [Asking(daemon) for _ in range(4)]
        caller.publish(REQUEST, {"prompt": "Hello", "max_tokens": 4, "reply_to": "replies/a", **unending(daemon)})
        assert eventually(lambda: steps.worker.queue_length() == 6, WITHIN_S)
        steps.release()
        assert stream.finished()["choices"][0]["finish_reason"] == "length"
        for asking in waiting:
            asking.join(WITHIN_S)
            assert asking.answer is not None
        assert len(steps.slots) == 1, "only the answer that had begun goes on on the old runner"

        assert serves_on(daemon, "tensorrt")
        assert ready(daemon)[1] == "ready, on tensorrt (10.3.0)\n"
        assert metric(daemon, "edgekit_rejected_runner_info{") == []
        assert 'runner="tensorrt (10.3.0)"' in "".join(metric(daemon, "edgekit_model_info"))
        assert "edgekit_engine_build_ratio 1.0" in metric(daemon, "edgekit_engine_build")
        with pytest.raises(RunnerError, match="closed"):
            steps._run([Chunk(0, [1])])
        ask(daemon)
        messages: list[dict[str, Any]] = []
        while not {"final", "status", "info"} <= {message.get("type") for message in messages}:
            message = caller.next(WITHIN_S)
            if "type" in message and (message["type"] == "final" or not building(daemon)):
                messages.append(message)
        (final,) = [message for message in messages if message["type"] == "final"]
        assert final["usage"]["completion_tokens"] == 4
        status = [message for message in messages if message["type"] == "status"][-1]
        assert (status["runner"], status["rejected_runners"]) == ("tensorrt (10.3.0)", [])
        assert "engine" not in status
        daemon.stop()
    # This machine is no known target: it may not have the memory that batches take.
    assert [(limits.context_length, limits.batch) for limits in builder.builds] == [(128, 1)]
    assert (driver.allocated, driver.open_handles) == (0, 0)


def test_an_engine_that_fails_the_self_test_is_removed_and_not_built_again(
    make_daemon: MakeDaemon, builder: BuilderDouble, exported: Path, tmp_path: Path
) -> None:
    builder.graph_of = exported / "other"
    builder.go_on.set()
    daemon = make_daemon()
    daemon.start()
    assert serves_on(daemon, "cpu")
    assert "not on tensorrt: tensorrt (10.3.0) computes wrong logits with this bundle: error of " in ready(daemon)[1]
    assert not [path for path in (tmp_path / "cache" / "engines").iterdir() if path.is_dir()]
    ask(daemon)
    daemon.stop()

    again = make_daemon()
    again.start()
    assert not building(again)
    assert "wrong logits" in ready(again)[1]
    assert "(at an earlier start; not tried again)" in ready(again)[1]
    assert len(builder.builds) == 1

    # Other inputs, another try.
    other = make_daemon(context_length=96)
    builder.graph_of = None
    other.start()
    assert serves_on(other, "tensorrt")


@pytest.mark.parametrize("works", [True, False])
def test_where_memory_holds_one_runner_only_the_old_one_is_closed_first_and_loaded_again_if_the_engine_fails(
    make_daemon: MakeDaemon,
    builder: BuilderDouble,
    driver: DriverDouble,
    monkeypatch: pytest.MonkeyPatch,
    *,
    works: bool,
) -> None:
    monkeypatch.setattr(engine_switch, "available_bytes", lambda: 1)
    daemon = make_daemon()
    daemon.start()
    steps = Steps(daemon)
    stream = Stream(daemon, 100)
    steps.wait()
    if not works:
        driver._total = 1000
    builder.go_on.set()
    assert eventually(lambda: steps.worker._switch is not None, WITHIN_S)
    assert driver.allocated == 0, "nothing is loaded while the old runner computes"
    waiting = [Asking(daemon) for _ in range(3)]
    assert eventually(lambda: steps.worker.queue_length() == 4, WITHIN_S)
    steps.release()
    stream.finished()
    for asking in waiting:
        asking.join(WITHIN_S)
        assert asking.answer is not None
    assert serves_on(daemon, "tensorrt" if works else "cpu")
    with pytest.raises(RunnerError, match="closed"):
        steps._run([Chunk(0, [1])])
    if not works:
        assert "not on tensorrt: " in ready(daemon)[1]
        assert "its engine is being built" not in ready(daemon)[1]
        assert "this bundle cannot run" not in ready(daemon)[1]
    ask(daemon)
    daemon.stop()
    assert (driver.allocated, driver.open_handles) == (0, 0)


def test_if_neither_runner_can_be_loaded_the_daemon_says_so_to_everyone_and_is_unhealthy(
    make_daemon: MakeDaemon, builder: BuilderDouble, driver: DriverDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_switch, "available_bytes", lambda: 1)
    daemon = make_daemon()
    daemon.start()
    steps = Steps(daemon)
    stream = Stream(daemon, 100)
    steps.wait()
    driver._total = 1000
    builder.go_on.set()
    assert eventually(lambda: steps.worker._switch is not None, WITHIN_S)
    refused: list[httpx.Response] = []
    body = {"prompt": "Hello"}
    asking = threading.Thread(
        target=lambda: refused.append(httpx.post(f"{url(daemon)}/v1/completions", json=body, timeout=WITHIN_S))
    )
    asking.start()
    assert eventually(lambda: steps.worker.queue_length() == 2, WITHIN_S)
    monkeypatch.setattr("edgekit.runners.cpu.select.probe", lambda *_: Unavailable("its file is gone"))
    steps.release()
    stream.finished()
    asking.join(WITHIN_S)
    assert refused[0].json()["error"]["code"] == "generation_failed"
    assert eventually(lambda: httpx.get(f"{url(daemon)}/healthz").status_code == 503, WITHIN_S)
    assert ready(daemon) == (503, "generation has failed\n")


@pytest.mark.parametrize(
    ("code", "again", "beside"),
    [
        ("build_failed", False, True),
        ("build_memory", True, False),
        pytest.param("build_failed", False, False, marks=pytest.mark.slow),
        pytest.param("build_memory", True, True, marks=pytest.mark.slow),
        pytest.param("runner_failed", True, True, marks=pytest.mark.slow),
    ],
)
def test_a_build_that_fails_is_tried_again_only_if_it_may_succeed_then(
    make_daemon: MakeDaemon,
    builder: BuilderDouble,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    *,
    again: bool,
    beside: bool,
) -> None:
    if not beside:
        monkeypatch.setattr(first_build, "available_bytes", lambda: int(0.99 * GIB))
    builder.fails = RunnerError("Myelin gave up", hint="another number of segments", code=code)
    builder.go_on.set()
    daemon = make_daemon()
    daemon.start()
    assert serves_on(daemon, "cpu")
    assert "not on tensorrt: Myelin gave up\n" in ready(daemon)[1]
    ask(daemon)
    daemon.stop()
    builder.fails = None
    daemon = make_daemon()
    daemon.start()
    assert serves_on(daemon, "tensorrt" if again else "cpu")
    assert len(builder.builds) == 1 + again


@pytest.mark.parametrize("beside", [True, False])
def test_stopping_cancels_the_build_and_leaves_nothing_behind(
    make_daemon: MakeDaemon, builder: BuilderDouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, beside: bool
) -> None:
    if not beside:
        monkeypatch.setattr(first_build, "available_bytes", lambda: int(0.99 * GIB))
    daemon = make_daemon()
    starting = threading.Thread(target=_start, args=(daemon,))
    starting.start()
    assert eventually(lambda: bool(builder.builds), WITHIN_S)
    if beside:
        starting.join(WITHIN_S)
    daemon.stop()
    starting.join(WITHIN_S)
    assert not starting.is_alive()
    assert not [path for path in (tmp_path / "cache" / "engines").iterdir() if path.is_dir()]
    assert json.loads((tmp_path / "state" / FILE).read_text()) == {}


def _start(daemon: Daemon) -> None:
    with contextlib.suppress(StoppedError):
        daemon.start()


def test_stopping_while_the_switch_waits_lets_the_running_answer_end(
    make_daemon: MakeDaemon, builder: BuilderDouble, driver: DriverDouble
) -> None:
    daemon = make_daemon()
    daemon.start()
    steps = Steps(daemon)
    stream = Stream(daemon, 60)
    steps.wait()
    builder.go_on.set()
    assert eventually(lambda: steps.worker._switch is not None, WITHIN_S)
    stopping = threading.Thread(target=daemon.stop)
    stopping.start()
    assert eventually(lambda: not steps.worker.accepting)
    steps.release()
    stopping.join(WITHIN_S)
    stream.finished()
    assert (driver.allocated, driver.open_handles) == (0, 0)


def test_a_start_after_builds_that_ended_with_the_daemon_builds_no_more(
    make_daemon: MakeDaemon, builder: BuilderDouble, tmp_path: Path
) -> None:
    file = tmp_path / "state" / FILE
    for number in range(1, MAX_UNFINISHED + 1):
        daemon = make_daemon()
        daemon.start()
        assert eventually(lambda: len(builder.builds) == number, WITHIN_S)  # noqa: B023  called at once
        killed = file.read_bytes()
        daemon.stop()
        # As if it had been killed.
        file.write_bytes(killed)
    begun = len(builder.builds)
    daemon = make_daemon()
    daemon.start()
    assert f"{MAX_UNFINISHED} builds in a row ended with the daemon itself" in ready(daemon)[1]
    assert len(builder.builds) == begun


def test_an_unexpected_error_leaves_the_daemon_answering_and_says_so(
    make_daemon: MakeDaemon, builder: BuilderDouble
) -> None:
    builder.go_on.set()
    builder.fails = KeyError("graph")
    daemon = make_daemon()
    daemon.start()
    assert serves_on(daemon, "cpu")
    assert eventually(lambda: "not on tensorrt: internal error" in ready(daemon)[1], WITHIN_S), ready(daemon)
    ask(daemon)


def test_nothing_is_built_where_another_runner_is_fixed(make_daemon: MakeDaemon, builder: BuilderDouble) -> None:
    daemon = make_daemon(runner="cpu")
    daemon.start()
    assert not building(daemon)
    assert ready(daemon)[1].startswith("ready, on cpu (")
    assert metric(daemon, "edgekit_engine_build") == []
    assert builder.builds == []


def test_a_fixed_runner_waits_for_its_engine_and_fails_with_the_builders_reason(
    make_daemon: MakeDaemon, builder: BuilderDouble
) -> None:
    builder.fails = RunnerError("Myelin gave up", code="build_failed")
    builder.go_on.set()
    with pytest.raises(RunnerError, match="Myelin gave up"):
        make_daemon(runner="tensorrt").start()
