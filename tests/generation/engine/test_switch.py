"""`EngineWorker.switch`: another model between answers, and no request lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from edgekit.errors import RunnerError, UnavailableError
from edgekit.generation.engine.worker import EngineWorker, Served
from tests.generation.engine.test_worker import Gate, Receiver, _ask, _code, _until
from tests.generation.tiny import echo_model

pytestmark = pytest.mark.serial

LONG_S = 600.0


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def worker(gate: Gate) -> Iterator[EngineWorker]:
    """A worker whose steps wait for the gate."""
    made = EngineWorker(echo_model("old", before_step=gate))
    yield made
    gate.open.set()
    made.stop()


@pytest.fixture
def switch(worker: EngineWorker) -> Iterator[Callable[[Callable[[Served], Served]], Future[None]]]:
    """Returns a function that switches in a thread of its own, and returns once that is pending."""
    with ThreadPoolExecutor() as pool:

        def begin(change: Callable[[Served], Served]) -> Future[None]:
            future = pool.submit(worker.switch, change, limit_s=LONG_S)
            _until(lambda: worker._switch is not None or future.done())
            return future

        yield begin


Switch = Callable[[Callable[[Served], Served]], "Future[None]"]


def submit(worker: EngineWorker, count: int, **fields: Any) -> list[Receiver]:
    receivers = [Receiver() for _ in range(count)]
    for number, receiver in enumerate(receivers):
        worker.submit(_ask(str(number), **fields), receiver)
    return receivers


def test_answers_that_have_begun_end_on_the_old_model_and_those_that_wait_get_the_new_one(
    worker: EngineWorker, gate: Gate, switch: Switch
) -> None:
    before = submit(worker, 3)
    assert gate.entered.wait(20)
    closed: list[bool] = []

    def change(old: Served) -> Served:
        old.model.close()
        closed.append(True)
        return Served(echo_model("new"))

    done = switch(change)
    after = submit(worker, 2)
    assert not closed
    gate.open.set()
    done.result(20)
    for receiver in (*before, *after):
        assert _code(receiver.wait()) == "stop"
    assert [receiver.text for receiver in (*before, *after)] == ["old", "new", "new", "new", "new"]
    assert worker.queue_length() == 0


def test_requests_that_wait_keep_their_order_and_can_be_cancelled(
    worker: EngineWorker, gate: Gate, switch: Switch
) -> None:
    (running,) = submit(worker, 1)
    assert gate.entered.wait(20)
    order: list[str] = []

    def receive(name: str) -> Callable[[object], None]:
        receiver = Receiver()
        receivers[name] = receiver

        def on_event(event: object) -> None:
            receiver(event)  # type: ignore[arg-type]  # an event
            if receiver.over.is_set():
                order.append(name)

        return on_event

    receivers: dict[str, Receiver] = {}
    states = {
        name: worker.submit(_ask(name, priority=priority), receive(name))
        for name, priority in (("last", 5), ("gone", 1), ("first", 0), ("next", 2))
    }
    done = switch(lambda _: Served(echo_model("new")))
    states["gone"].cancel()
    gate.open.set()
    done.result(20)
    assert _code(running.wait()) == "stop"
    assert {name: _code(receiver.wait()) for name, receiver in receivers.items()} == {
        "last": "stop",
        "gone": "cancelled",
        "first": "stop",
        "next": "stop",
    }
    assert [name for name in order if name != "gone"] == ["first", "next", "last"]


def test_if_the_change_fails_the_old_model_goes_on(worker: EngineWorker, gate: Gate, switch: Switch) -> None:
    def change(_: Served) -> Served:
        raise RunnerError("no room")

    gate.open.set()
    with pytest.raises(RunnerError, match="no room"):
        switch(change).result(20)
    (receiver,) = submit(worker, 1)
    assert _code(receiver.wait()) == "stop"
    assert receiver.text == "old"
    switch(lambda _: Served(echo_model("new"))).result(20)
    assert worker.info.name == echo_model().info.name


@pytest.mark.parametrize("where", ["the change", "the engine"])
def test_without_a_model_everything_fails_and_the_worker_has_failed(
    worker: EngineWorker, gate: Gate, switch: Switch, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(_: Served) -> Served:
        if where == "the change":
            raise RuntimeError("neither loads")
        return Served(echo_model("new"))

    def no_engine(_: Served) -> None:
        raise MemoryError

    running, waiting = submit(worker, 2)
    assert gate.entered.wait(20)
    monkeypatch.setattr(worker, "_engine_of", no_engine)
    done = switch(change)
    (later,) = submit(worker, 1)
    gate.open.set()
    with pytest.raises(RunnerError) as caught:
        done.result(20)
    assert caught.value.code == "generation_failed"
    assert [_code(receiver.wait()) for receiver in (running, waiting, later)] == ["stop", *["generation_failed"] * 2]
    assert worker.failed
    with pytest.raises(RunnerError):
        worker.switch(lambda old: old, limit_s=LONG_S)


def test_a_prompt_that_the_new_model_does_not_hold_fails_alone(
    worker: EngineWorker, gate: Gate, switch: Switch
) -> None:
    submit(worker, 1)
    assert gate.entered.wait(20)
    (long,) = submit(worker, 1, content="x" * 600)
    (short,) = submit(worker, 1)
    done = switch(lambda _: Served(echo_model("new", context_length=256)))
    gate.open.set()
    done.result(20)
    assert _code(long.wait()) == "context_length_exceeded"
    assert _code(short.wait()) == "stop"
    assert short.text == "new"


def test_stopping_gives_up_a_switch_that_waits(worker: EngineWorker, gate: Gate, switch: Switch) -> None:
    (running,) = submit(worker, 1)
    assert gate.entered.wait(20)
    done = switch(lambda _: pytest.fail("the model was changed"))
    stopping = threading.Thread(target=worker.stop, args=(20.0,))
    stopping.start()
    _until(lambda: not worker.accepting)
    gate.open.set()
    with pytest.raises(UnavailableError):
        done.result(20)
    assert _code(running.wait()) == "stop"
    stopping.join(20)


def test_a_change_may_take_its_time_and_no_more(worker: EngineWorker, gate: Gate, switch: Switch) -> None:
    gate.open.set()
    release = threading.Event()
    changing = threading.Event()

    def change(old: Served) -> Served:
        changing.set()
        release.wait(20)
        return old

    done = switch(change)
    assert changing.wait(20)
    assert worker.seconds_since_heartbeat() == 0.0
    release.set()
    done.result(20)
    assert worker.seconds_since_heartbeat() < LONG_S
