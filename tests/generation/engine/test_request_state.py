"""What a request reports of itself: times, choices and its deadline."""

from __future__ import annotations

import time

import pytest

from edgekit.errors import RequestError
from edgekit.generation.engine.request_state import RequestState
from edgekit.generation.tools import ArgumentsDelta, CallStart, TextDelta
from edgekit.generation.types import ChatRequest, ChoiceFinished, Delta, Event, Finished, Message, TokenLogprob
from edgekit.generation.usage import Timings
from tests.generation.tiny import echo_model

TICK_S = 0.002
LOGPROB = TokenLogprob(1, b"a", -1.0)


def _state(events: list[Event], **fields: object) -> RequestState:
    request = ChatRequest("r", (Message("user", "Hello"),), **fields)  # type: ignore[arg-type]
    return RequestState(echo_model().prepare(request), events.append, submitted=time.monotonic())


def _timings(events: list[Event]) -> Timings:
    (end,) = events
    assert isinstance(end, Finished)
    return end.timings


def test_times_are_measured_from_the_first_slot_the_first_token_and_the_last() -> None:
    events: list[Event] = []
    state = _state(events)
    time.sleep(TICK_S)
    state.start()
    started = state.started
    assert started is not None
    time.sleep(TICK_S)
    first = state.count_token(0.0)
    time.sleep(4 * TICK_S)
    second = state.count_token(first)
    time.sleep(TICK_S)
    third = state.count_token(second)
    time.sleep(TICK_S)
    state.start()  # again, after it was preempted
    assert state.started == started
    state.finish("stop")
    timings = _timings(events)
    assert timings.queue_s == started - state.submitted > 0
    assert timings.prefill_s == first - started > 0
    assert timings.decode_s == third - first > 0
    assert timings.slowest_token_s == max(second - first, third - second)


def test_a_token_s_time_is_compared_with_its_own_choice() -> None:
    events: list[Event] = []
    state = _state(events, n=2)
    state.start()
    one = state.count_token(0.0)
    time.sleep(TICK_S)
    other = state.count_token(0.0)
    last = state.count_token(other)
    state.finish("stop")
    assert _timings(events).slowest_token_s == last - other
    assert _timings(events).decode_s == last - one


def test_a_request_without_a_token_spent_all_its_time_before_the_first() -> None:
    events: list[Event] = []
    state = _state(events)
    state.start()
    time.sleep(TICK_S)
    state.finish("cancelled")
    timings = _timings(events)
    assert timings.prefill_s >= TICK_S
    assert (timings.decode_s, timings.slowest_token_s) == (0.0, 0.0)


def test_a_request_without_a_slot_spent_all_its_time_in_the_queue() -> None:
    events: list[Event] = []
    state = _state(events)
    time.sleep(TICK_S)
    state.finish("cancelled")
    timings = _timings(events)
    assert timings.queue_s >= TICK_S
    assert (timings.prefill_s, timings.decode_s) == (0.0, 0.0)


def test_the_deadline_counts_from_the_submission() -> None:
    state = _state([], deadline_s=2.0)
    state.check_deadline(state.submitted + 2.0)
    with pytest.raises(RequestError, match="not complete within 2 s") as caught:
        state.check_deadline(state.submitted + 2.001)
    assert caught.value.code == "deadline_exceeded"
    _state([]).check_deadline(float("inf"))


def test_the_last_choice_to_end_is_reported_by_the_end_of_the_request() -> None:
    events: list[Event] = []
    state = _state(events, n=3)
    assert not state.finish_choice(1, "length")
    assert not state.finish_choice(0, "stop")
    assert events == [ChoiceFinished(1, "length"), ChoiceFinished(0, "stop")]
    assert state.finish_choice(2, "cancelled")
    assert len(events) == 2
    state.finish()
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].reasons) == ("stop", ("stop", "length", "cancelled"))


def test_only_the_first_end_is_delivered_and_nothing_after_it() -> None:
    events: list[Event] = []
    state = _state(events, n=2)
    state.fail(RequestError("no"))
    state.finish("stop")
    state.send(0, [TextDelta("late")])
    assert not state.finish_choice(0, "stop")
    assert len(events) == 1


def test_choices_that_have_not_ended_take_the_reason_of_the_request() -> None:
    events: list[Event] = []
    state = _state(events, n=2)
    state.finish_choice(1, "length")
    state.finish("cancelled")
    assert isinstance(events[-1], Finished)
    assert events[-1].reasons == ("cancelled", "length")


def test_log_probabilities_go_with_the_first_text() -> None:
    events: list[Event] = []
    state = _state(events)
    state.send(0, [CallStart("c", "now"), ArgumentsDelta("{}"), TextDelta("a"), TextDelta("b")], [LOGPROB])
    state.send(0, [], [LOGPROB])
    texts = [event for event in events if isinstance(event, Delta)]
    assert [(event.text, event.logprobs) for event in texts] == [("a", (LOGPROB,)), ("b", ()), ("", (LOGPROB,))]
