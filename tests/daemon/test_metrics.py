from __future__ import annotations

from edgekit.daemon.metrics import Metrics
from edgekit.errors import RequestError
from edgekit.generation.model import ModelInfo
from edgekit.generation.request import Delta, Event, Failure, Finish, Timings, Usage


def test_events_are_counted_by_door_and_passed_on_in_order() -> None:
    metrics = Metrics()
    seen: list[Event] = []
    receive = metrics.track("mqtt", seen.append)
    finish = Finish("length", Usage(7, 3), Timings(queue_s=0.5, prefill_s=0.2, decode_s=0.1))
    events: list[Event] = [Delta(0, "a"), Delta(1, "b"), finish]
    for event in events:
        receive(event)
    assert seen == events
    text = metrics.render()[0].decode()
    assert 'edgekit_requests_total{door="mqtt",outcome="length"} 1.0' in text
    assert 'edgekit_prompt_tokens_total{door="mqtt"} 7.0' in text
    assert 'edgekit_first_delta_seconds_count{door="mqtt"} 1.0' in text
    assert 'edgekit_queue_seconds_sum{door="mqtt"} 0.5' in text
    # 2 tokens after the first in 0.1 s.
    assert "edgekit_decode_tokens_per_second_sum 20.0" in text


def test_failures_and_refusals_are_counted_by_code() -> None:
    metrics = Metrics()
    error = RequestError("late", code="deadline_exceeded")
    metrics.track("http", lambda _: None)(Failure(error))
    metrics.refused("http", RequestError("full", code="overloaded"))
    text = metrics.render()[0].decode()
    assert 'edgekit_requests_total{door="http",outcome="deadline_exceeded"} 1.0' in text
    assert 'edgekit_requests_total{door="http",outcome="overloaded"} 1.0' in text


def test_the_schedulers_state_is_read_when_scraped() -> None:
    metrics = Metrics()
    length = 2
    metrics.watch(ModelInfo("m", 0, 64), queue_length=lambda: length, heartbeat_age=lambda: 1.5)
    assert "edgekit_queue_length 2.0" in metrics.render()[0].decode()
    length = 5
    text = metrics.render()[0].decode()
    assert "edgekit_queue_length 5.0" in text
    assert "edgekit_heartbeat_age_seconds 1.5" in text
    assert 'edgekit_model_info{context_length="64",name="m"} 1.0' in text


def test_two_daemons_in_one_process_do_not_mix() -> None:
    first, second = Metrics(), Metrics()
    first.refused("http", RequestError("no"))
    assert "invalid_request" not in second.render()[0].decode()
