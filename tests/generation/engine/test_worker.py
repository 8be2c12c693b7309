from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable

import pytest

from edgekit.errors import EdgekitError, RequestError, RunnerError, UnavailableError
from edgekit.generation.engine import worker as worker_module
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.model import TextModel
from edgekit.generation.prepared import PreparedRequest
from edgekit.generation.time_limit import TimeLimit
from edgekit.generation.types import ChatRequest, Delta, Event, Failure, Finished, Message
from tests.generation.tiny import EchoRunner, echo_model

pytestmark = pytest.mark.serial

ANSWER = "Paris is the capital of France."


class Receiver:
    """Collects one request's events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        assert not self.over.is_set(), "an event after the last"
        self.events.append(event)
        if isinstance(event, Finished | Failure):
            self.over.set()

    def wait(self) -> Finished | Failure:
        assert self.over.wait(20)
        last = self.events[-1]
        assert isinstance(last, Finished | Failure)
        return last

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))


def _ask(name: str = "r", content: str = "Hello", **fields: object) -> ChatRequest:
    return ChatRequest(name, (Message("user", content),), **fields)  # type: ignore[arg-type]


def _code(last: Finished | Failure) -> str:
    return last.error.code if isinstance(last, Failure) else last.reason


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


class Gate:
    """Blocks the model's steps until opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, _: int) -> None:
        self.entered.set()
        assert self.open.wait(20)


def test_requests_are_answered_in_order_and_completely() -> None:
    worker = EngineWorker(echo_model())
    order: queue.Queue[str] = queue.Queue()
    receivers = []
    for number in range(5):
        receiver = Receiver()
        receivers.append(receiver)

        def receive(event: Event, receiver: Receiver = receiver, name: str = str(number)) -> None:
            receiver(event)
            if isinstance(event, Finished):
                order.put(name)

        worker.submit(_ask(), receive)
    for receiver in receivers:
        assert _code(receiver.wait()) == "stop"
        assert receiver.text == ANSWER
    worker.stop()
    assert [order.get_nowait() for _ in range(5)] == list("01234")


def test_one_request_too_many_is_rejected_as_overloaded_with_a_retry_time() -> None:
    gate = Gate()
    worker = EngineWorker(echo_model(before_step=gate), max_queue=2)
    receivers = [Receiver() for _ in range(3)]
    for receiver in receivers:
        worker.submit(_ask(), receiver)
    assert worker.queue_length() == 3
    with pytest.raises(UnavailableError) as caught:
        worker.submit(_ask(), Receiver())
    assert caught.value.code == "overloaded"
    assert 1 <= caught.value.retry_after_s <= 60
    gate.open.set()
    assert [_code(receiver.wait()) for receiver in receivers] == ["stop"] * 3
    again = Receiver()
    worker.submit(_ask(), again)
    assert _code(again.wait()) == "stop"
    worker.stop()


def test_the_retry_time_follows_the_running_requests_and_those_rejected_before() -> None:
    gate = Gate()
    worker = EngineWorker(echo_model(before_step=gate), max_queue=1)

    def retry_after_s() -> float:
        with pytest.raises(UnavailableError) as caught:
            worker.submit(_ask(), Receiver())
        return caught.value.retry_after_s

    receivers = [Receiver() for _ in range(2)]
    for receiver in receivers:
        worker.submit(_ask(), receiver)
    _until(lambda: len(worker._engine.running_since) == 1)
    first, second, third = (retry_after_s() for _ in range(3))
    assert 1 <= first <= 5, "nothing has ended yet"
    assert first + 4 < second < third - 4, "each waits for another place"
    # As if requests had been taking minutes.
    worker._typical_s, worker._rejected = 300.0, 0
    assert retry_after_s() == 60
    worker._typical_s, worker._rejected = 20.0, 0
    time.sleep(1.1)
    assert 10 < retry_after_s() < 19
    gate.open.set()
    assert [_code(receiver.wait()) for receiver in receivers] == ["stop"] * 2
    worker.stop()


def test_the_first_request_that_ends_tells_how_long_one_takes() -> None:
    gate = Gate()
    worker = EngineWorker(echo_model(before_step=gate))
    receiver = Receiver()
    worker.submit(_ask(), receiver)
    time.sleep(1.0)
    gate.open.set()
    receiver.wait()
    assert worker._typical_s is not None
    assert 0.9 < worker._typical_s < 30
    worker.stop()


def test_the_queue_is_limited_by_the_memory_of_its_prompts_too() -> None:
    gate = Gate()
    worker = EngineWorker(echo_model(before_step=gate), max_queue_bytes=100_000)
    # One alone is accepted whatever its size; 900 tokens take more than 30 kB.
    receivers = [Receiver() for _ in range(3)]
    for receiver in receivers[:2]:
        worker.submit(_ask(content="x" * 900), receiver)
    with pytest.raises(UnavailableError, match="MiB of prompts") as caught:
        worker.submit(_ask(content="x" * 900), Receiver())
    assert caught.value.code == "overloaded"
    worker.submit(_ask(content="x"), receivers[2])
    gate.open.set()
    assert [_code(receiver.wait()) for receiver in receivers] == ["stop"] * 3
    assert worker._bytes == 0
    worker.stop()


def test_a_prompt_over_the_context_is_refused_when_submitted() -> None:
    model = echo_model(context_length=50)
    worker = EngineWorker(model)
    with pytest.raises(RequestError, match="the context holds 50") as caught:
        worker.submit(_ask(content="x" * 100), Receiver())
    assert caught.value.code == "context_length_exceeded"
    assert worker.queue_length() == 0
    worker.stop()


def test_a_running_request_is_cancelled_within_one_step() -> None:
    gate = Gate()
    model = echo_model(before_step=gate)
    worker = EngineWorker(model)
    receiver = Receiver()
    state = worker.submit(_ask(), receiver)
    assert gate.entered.wait(10)
    state.cancel()
    gate.open.set()
    assert _code(receiver.wait()) == "cancelled"
    assert isinstance(model.runner, EchoRunner)
    assert model.runner.steps == 1
    state.cancel()
    worker.stop()


def test_waiting_requests_are_cancelled_and_expire_while_another_runs() -> None:
    model = echo_model("x" * 900, before_step=lambda _: time.sleep(0.01))
    worker = EngineWorker(model)
    running, cancelled, expired = Receiver(), Receiver(), Receiver()
    state = worker.submit(_ask(), running)
    waiting = worker.submit(_ask(), cancelled)
    worker.submit(_ask(deadline_s=0.1), expired)
    waiting.cancel()
    assert _code(cancelled.wait()) == "cancelled"
    assert _code(expired.wait()) == "deadline_exceeded"
    assert not running.over.is_set()
    assert worker.queue_length() == 1
    state.cancel()
    running.wait()
    worker.stop()


def test_a_running_request_fails_at_its_deadline() -> None:
    worker = EngineWorker(echo_model("x" * 900, before_step=lambda _: time.sleep(0.01)))
    receiver = Receiver()
    started = time.monotonic()
    worker.submit(_ask(deadline_s=0.2), receiver)
    assert _code(receiver.wait()) == "deadline_exceeded"
    assert time.monotonic() - started >= 0.2
    assert 0 < len(receiver.text) < 900, "it fails while it is running"
    worker.stop()


def test_a_failing_model_fails_its_request_and_answers_the_next(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = [RunnerError("the device is lost"), ValueError("odd")]

    def fail(step: int) -> None:
        if step % 3 == 0 and errors:
            raise errors.pop(0)

    worker = EngineWorker(echo_model(before_step=fail))
    receivers = [Receiver() for _ in range(3)]
    with caplog.at_level(logging.CRITICAL):
        for receiver in receivers:
            worker.submit(_ask(), receiver)
        assert [_code(receiver.wait()) for receiver in receivers] == ["runner_failed", "internal_error", "stop"]
    assert receivers[-1].text == ANSWER
    worker.stop()


def test_a_receiver_that_raises_cancels_its_own_request_only(caplog: pytest.LogCaptureFixture) -> None:
    worker = EngineWorker(echo_model())
    seen: list[Event] = []

    def broken(event: Event) -> None:
        seen.append(event)
        raise RuntimeError("the event loop is closed")

    after = Receiver()
    with caplog.at_level(logging.CRITICAL):
        worker.submit(_ask(), broken)
        worker.submit(_ask(), after)
        assert _code(after.wait()) == "stop"
    assert [type(event) for event in seen] == [Delta, Finished]
    assert isinstance(seen[-1], Finished)
    assert seen[-1].reason == "cancelled"
    worker.stop()


def test_the_heart_beats_while_idle_and_while_answering_and_stops_with_a_hanging_step() -> None:
    gate = Gate()
    worker = EngineWorker(echo_model(before_step=gate))
    started = time.monotonic()
    _until(lambda: worker.seconds_since_heartbeat() < time.monotonic() - started - 0.2)
    receiver = Receiver()
    worker.submit(_ask(), receiver)
    assert gate.entered.wait(10)
    hung = time.monotonic()
    time.sleep(0.8)
    assert worker.seconds_since_heartbeat() >= 0.8
    assert worker._thread.daemon, "a hanging step does not keep the process from ending"
    gate.open.set()
    receiver.wait()
    _until(lambda: worker.seconds_since_heartbeat() < time.monotonic() - hung - 0.8)
    worker.stop()


def test_the_request_that_has_been_prepared_for_longest_tells_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

    preparing, go_on = threading.Semaphore(0), threading.Event()
    real = TextModel.prepare

    def slow(model: TextModel, request: ChatRequest, limit: TimeLimit) -> PreparedRequest:
        preparing.release()
        assert go_on.wait(20)
        return real(model, request, limit)

    monkeypatch.setattr(TextModel, "prepare", slow)
    monkeypatch.setattr(worker_module, "time", Clock)
    worker = EngineWorker(echo_model())
    receivers = [Receiver(), Receiver()]
    threads = [threading.Thread(target=worker.submit, args=(_ask(), receiver)) for receiver in receivers]
    for thread, now in zip(threads, (10.0, 13.0), strict=True):
        Clock.now = now
        thread.start()
        assert preparing.acquire(timeout=20)
    Clock.now = 20.0
    assert worker.seconds_preparing() == 10
    go_on.set()
    for receiver in receivers:
        receiver.wait()
    assert worker.seconds_preparing() == 0
    worker.stop()


def test_stopping_drains_what_ends_in_time_and_closes_the_model() -> None:
    model = echo_model(before_step=lambda _: time.sleep(0.002))
    worker = EngineWorker(model)
    receivers = [Receiver() for _ in range(3)]
    for receiver in receivers:
        worker.submit(_ask(), receiver)
    worker.stop(drain_s=20)
    assert [_code(receiver.wait()) for receiver in receivers] == ["stop"] * 3
    assert isinstance(model.runner, EchoRunner)
    assert model.runner.closed
    assert not worker.accepting
    with pytest.raises(UnavailableError) as caught:
        worker.submit(_ask(), Receiver())
    assert caught.value.code == "shutting_down"
    worker.stop()


def test_stopping_fails_what_does_not_end_in_time() -> None:
    worker = EngineWorker(echo_model("x" * 900, before_step=lambda _: time.sleep(0.02)))
    receivers = [Receiver() for _ in range(3)]
    for receiver in receivers:
        worker.submit(_ask(), receiver)
    worker.stop(drain_s=0.2)
    assert [_code(receiver.wait()) for receiver in receivers] == ["shutting_down"] * 3
    assert all(len(receiver.text) < 900 for receiver in receivers)


def test_a_request_submitted_at_the_last_event_of_another_finds_the_queue_place_free() -> None:
    worker = EngineWorker(echo_model("ab"), max_queue=0)
    done = threading.Event()
    outcomes: list[str] = []

    def again(event: Event) -> None:
        if not isinstance(event, Finished | Failure):
            return
        outcomes.append(_code(event))
        if len(outcomes) < 20:
            worker.submit(_ask(), again)
        else:
            done.set()

    worker.submit(_ask(), again)
    assert done.wait(10)
    assert outcomes == ["stop"] * 20
    worker.stop()


@pytest.mark.parametrize("seed", range(4))
def test_every_accepted_request_ends_exactly_once_under_random_load(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311  a schedule, not a secret

    def misbehave(_: int) -> None:
        if rng.random() < 0.002:
            raise RunnerError("now and then")
        if rng.random() < 0.05:
            time.sleep(0.001)

    model = echo_model(before_step=misbehave)
    worker = EngineWorker(model, max_queue=6)
    accepted: list[Receiver] = []
    refused: list[EdgekitError] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        mine = random.Random(seed * 100 + number)  # noqa: S311
        for _ in range(30):
            receiver = Receiver()
            deadline = mine.choice([None, None, 0.005, 0.05])
            try:
                state = worker.submit(_ask(max_tokens=mine.randint(1, 40), deadline_s=deadline), receiver)
            except UnavailableError as error:
                with lock:
                    refused.append(error)
                time.sleep(0.002)
                continue
            with lock:
                accepted.append(receiver)
            if mine.random() < 0.3:
                time.sleep(mine.random() * 0.01)
                state.cancel()
            if mine.random() < 0.5:
                receiver.over.wait(10)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    worker.stop(drain_s=rng.choice([0.0, 5.0]))
    for thread in threads:
        thread.join()
    known = {"stop", "length", "cancelled", "deadline_exceeded", "runner_failed", "shutting_down"}
    for receiver in accepted:
        last = receiver.wait()
        assert _code(last) in known
        assert ANSWER.startswith(receiver.text)
        if _code(last) == "stop":
            assert receiver.text == ANSWER
    assert {error.code for error in refused} <= {"overloaded", "shutting_down"}
    assert len(accepted) + len(refused) == 180
    assert accepted
    assert worker.queue_length() == 0
    assert worker.stats().running == 0


def test_requests_wait_for_their_turn_and_the_wait_is_measured() -> None:
    worker = EngineWorker(echo_model(before_step=lambda _: time.sleep(0.005)))
    first, second = Receiver(), Receiver()
    worker.submit(_ask(), first)
    worker.submit(_ask(), second)
    ends = [first.wait(), second.wait()]
    assert all(isinstance(end, Finished) for end in ends)
    waits = [end.timings.queue_s for end in ends if isinstance(end, Finished)]
    total = [end.timings.prefill_s + end.timings.decode_s for end in ends if isinstance(end, Finished)]
    assert waits[0] < waits[1]
    assert waits[1] >= total[0] * 0.9
    worker.stop()
