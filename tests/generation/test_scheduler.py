from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable

import pytest

from edgekit.errors import EdgekitError, RequestError, RunnerError
from edgekit.generation.request import ChatRequest, Delta, Event, Failure, Finish, Message
from edgekit.generation.scheduler import Scheduler
from tests.generation.tiny import EchoRunner, echo_model

ANSWER = "Paris is the capital of France."


class Receiver:
    """Gathers one request's events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        assert not self.over.is_set(), "an event after the last"
        self.events.append(event)
        if isinstance(event, Finish | Failure):
            self.over.set()

    def wait(self) -> Finish | Failure:
        assert self.over.wait(20)
        last = self.events[-1]
        assert isinstance(last, Finish | Failure)
        return last

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))


def _ask(name: str = "r", content: str = "Hello", **fields: object) -> ChatRequest:
    return ChatRequest(name, (Message("user", content),), **fields)  # type: ignore[arg-type]


def _code(last: Finish | Failure) -> str:
    return last.error.code if isinstance(last, Failure) else last.reason


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


class Gate:
    """Holds the model's steps back until opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, _: int) -> None:
        self.entered.set()
        assert self.open.wait(20)


def test_requests_are_answered_in_order_and_whole() -> None:
    scheduler = Scheduler(echo_model())
    order: queue.Queue[str] = queue.Queue()
    receivers = []
    for number in range(5):
        receiver = Receiver()
        receivers.append(receiver)

        def receive(event: Event, receiver: Receiver = receiver, name: str = str(number)) -> None:
            receiver(event)
            if isinstance(event, Finish):
                order.put(name)

        scheduler.submit(_ask(), receive)
    for receiver in receivers:
        assert _code(receiver.wait()) == "stop"
        assert receiver.text == ANSWER
    scheduler.stop()
    assert [order.get_nowait() for _ in range(5)] == list("01234")


def test_one_request_too_many_is_overloaded_and_told_when_to_come_back() -> None:
    gate = Gate()
    scheduler = Scheduler(echo_model(before_step=gate), max_queue=2)
    receivers = [Receiver() for _ in range(3)]
    for receiver in receivers:
        scheduler.submit(_ask(), receiver)
    assert scheduler.queue_length() == 3
    with pytest.raises(RequestError) as caught:
        scheduler.submit(_ask(), Receiver())
    assert caught.value.code == "overloaded"
    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 60
    gate.open.set()
    assert [_code(receiver.wait()) for receiver in receivers] == ["stop"] * 3
    again = Receiver()
    scheduler.submit(_ask(), again)
    assert _code(again.wait()) == "stop"
    scheduler.stop()


def test_a_prompt_over_the_context_is_refused_when_submitted() -> None:
    model = echo_model(context_length=50)
    scheduler = Scheduler(model)
    with pytest.raises(RequestError, match="the context holds 50") as caught:
        scheduler.submit(_ask(content="x" * 100), Receiver())
    assert caught.value.code == "context_length_exceeded"
    assert scheduler.queue_length() == 0
    scheduler.stop()


def test_a_running_request_is_cancelled_within_one_step() -> None:
    gate = Gate()
    model = echo_model(before_step=gate)
    scheduler = Scheduler(model)
    receiver = Receiver()
    ticket = scheduler.submit(_ask(), receiver)
    assert gate.entered.wait(10)
    ticket.cancel()
    gate.open.set()
    assert _code(receiver.wait()) == "cancelled"
    assert isinstance(model.runner, EchoRunner)
    assert model.runner.steps == 1
    ticket.cancel()
    scheduler.stop()


def test_waiting_requests_are_cancelled_and_expire_while_another_runs() -> None:
    model = echo_model("x" * 900, before_step=lambda _: time.sleep(0.01))
    scheduler = Scheduler(model)
    running, cancelled, expired = Receiver(), Receiver(), Receiver()
    ticket = scheduler.submit(_ask(), running)
    waiting = scheduler.submit(_ask(), cancelled)
    scheduler.submit(_ask(deadline_s=0.1), expired)
    waiting.cancel()
    assert _code(cancelled.wait()) == "cancelled"
    assert _code(expired.wait()) == "deadline_exceeded"
    assert not running.over.is_set()
    assert scheduler.queue_length() == 1
    ticket.cancel()
    running.wait()
    scheduler.stop()


def test_a_running_request_fails_at_its_deadline() -> None:
    scheduler = Scheduler(echo_model("x" * 900, before_step=lambda _: time.sleep(0.01)))
    receiver = Receiver()
    started = time.monotonic()
    scheduler.submit(_ask(deadline_s=0.2), receiver)
    assert _code(receiver.wait()) == "deadline_exceeded"
    assert 0.2 <= time.monotonic() - started < 2
    assert receiver.text
    scheduler.stop()


def test_a_failing_model_fails_its_request_and_answers_the_next(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = [RunnerError("the device is lost"), ValueError("odd")]

    def fail(step: int) -> None:
        if step % 3 == 0 and errors:
            raise errors.pop(0)

    scheduler = Scheduler(echo_model(before_step=fail))
    receivers = [Receiver() for _ in range(3)]
    with caplog.at_level(logging.CRITICAL):
        for receiver in receivers:
            scheduler.submit(_ask(), receiver)
        assert [_code(receiver.wait()) for receiver in receivers] == ["runner_failed", "internal_error", "stop"]
    assert receivers[-1].text == ANSWER
    scheduler.stop()


def test_a_receiver_that_raises_loses_its_answer_and_nobody_elses(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = Scheduler(echo_model())
    seen: list[Event] = []

    def broken(event: Event) -> None:
        seen.append(event)
        raise RuntimeError("the event loop is closed")

    after = Receiver()
    with caplog.at_level(logging.CRITICAL):
        scheduler.submit(_ask(), broken)
        scheduler.submit(_ask(), after)
        assert _code(after.wait()) == "stop"
    assert [type(event) for event in seen] == [Delta, Finish]
    assert isinstance(seen[-1], Finish)
    assert seen[-1].reason == "cancelled"
    scheduler.stop()


def test_the_heart_beats_while_idle_and_while_answering_and_stops_with_a_hanging_step() -> None:
    gate = Gate()
    scheduler = Scheduler(echo_model(before_step=gate))
    time.sleep(1.3)
    assert scheduler.seconds_since_heartbeat() < 1.2
    receiver = Receiver()
    scheduler.submit(_ask(), receiver)
    assert gate.entered.wait(10)
    time.sleep(0.8)
    assert scheduler.seconds_since_heartbeat() >= 0.79
    gate.open.set()
    receiver.wait()
    assert scheduler.seconds_since_heartbeat() < 0.79
    scheduler.stop()


def test_stopping_drains_what_ends_in_time_and_closes_the_model() -> None:
    model = echo_model(before_step=lambda _: time.sleep(0.002))
    scheduler = Scheduler(model)
    receivers = [Receiver() for _ in range(3)]
    for receiver in receivers:
        scheduler.submit(_ask(), receiver)
    scheduler.stop(drain_s=20)
    assert [_code(receiver.wait()) for receiver in receivers] == ["stop"] * 3
    assert isinstance(model.runner, EchoRunner)
    assert model.runner.closed
    assert not scheduler.accepting
    with pytest.raises(RequestError) as caught:
        scheduler.submit(_ask(), Receiver())
    assert caught.value.code == "shutting_down"
    scheduler.stop()


def test_stopping_fails_what_does_not_end_in_time() -> None:
    scheduler = Scheduler(echo_model("x" * 900, before_step=lambda _: time.sleep(0.02)))
    receivers = [Receiver() for _ in range(3)]
    for receiver in receivers:
        scheduler.submit(_ask(), receiver)
    started = time.monotonic()
    scheduler.stop(drain_s=0.2)
    assert time.monotonic() - started < 3
    assert [_code(receiver.wait()) for receiver in receivers] == ["shutting_down"] * 3


def test_whoever_asks_again_at_the_last_event_finds_the_place_free() -> None:
    scheduler = Scheduler(echo_model("ab"), max_queue=0)
    done = threading.Event()
    outcomes: list[str] = []

    def again(event: Event) -> None:
        if not isinstance(event, Finish | Failure):
            return
        outcomes.append(_code(event))
        if len(outcomes) < 20:
            scheduler.submit(_ask(), again)
        else:
            done.set()

    scheduler.submit(_ask(), again)
    assert done.wait(10)
    assert outcomes == ["stop"] * 20
    scheduler.stop()


@pytest.mark.parametrize("seed", range(4))
def test_every_accepted_request_ends_exactly_once_under_random_load(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  a schedule, not a secret

    def misbehave(_: int) -> None:
        if chance.random() < 0.002:
            raise RunnerError("now and then")
        if chance.random() < 0.05:
            time.sleep(0.001)

    model = echo_model(before_step=misbehave)
    scheduler = Scheduler(model, max_queue=6)
    accepted: list[Receiver] = []
    refused: list[EdgekitError] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        mine = random.Random(seed * 100 + number)  # noqa: S311
        for _ in range(30):
            receiver = Receiver()
            deadline = mine.choice([None, None, 0.005, 0.05])
            try:
                ticket = scheduler.submit(_ask(max_tokens=mine.randint(1, 40), deadline_s=deadline), receiver)
            except RequestError as error:
                with lock:
                    refused.append(error)
                time.sleep(0.002)
                continue
            with lock:
                accepted.append(receiver)
            if mine.random() < 0.3:
                time.sleep(mine.random() * 0.01)
                ticket.cancel()
            if mine.random() < 0.5:
                receiver.over.wait(10)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    scheduler.stop(drain_s=chance.choice([0.0, 5.0]))
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
    assert scheduler.queue_length() == 0
    assert scheduler.stats().running == 0


def test_requests_wait_for_their_turn_and_the_wait_is_measured() -> None:
    scheduler = Scheduler(echo_model(before_step=lambda _: time.sleep(0.005)))
    first, second = Receiver(), Receiver()
    scheduler.submit(_ask(), first)
    scheduler.submit(_ask(), second)
    ends = [first.wait(), second.wait()]
    assert all(isinstance(end, Finish) for end in ends)
    waits = [end.timings.queue_s for end in ends if isinstance(end, Finish)]
    total = [end.timings.prefill_s + end.timings.decode_s for end in ends if isinstance(end, Finish)]
    assert waits[0] < waits[1]
    assert waits[1] >= total[0] * 0.9
    scheduler.stop()
