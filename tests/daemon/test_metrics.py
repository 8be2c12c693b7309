from __future__ import annotations

from edgekit.daemon.metrics import Metrics, MqttStats
from edgekit.errors import RequestError, UnavailableError
from edgekit.generation.engine.engine import EngineStats
from edgekit.generation.model import ModelInfo
from edgekit.generation.prefix import DiskStats, PrefixStats
from edgekit.generation.types import Delta, Event, Failure, Finished, ToolCallDelta
from edgekit.generation.usage import Timings, Usage
from edgekit.runners import Rejected


def test_events_are_counted_by_transport_and_passed_on_in_order() -> None:
    metrics = Metrics()
    seen: list[Event] = []
    receive = metrics.track("mqtt", seen.append)
    finish = Finished("length", Usage(7, 3), Timings(queue_s=0.5, prefill_s=0.2, decode_s=0.1))
    events: list[Event] = [Delta(0, "a"), Delta(1, "b"), finish]
    for event in events:
        receive(event)
    assert seen == events
    text = metrics.render()[0].decode()
    assert 'edgekit_requests_total{outcome="length",transport="mqtt"} 1.0' in text
    assert 'edgekit_prompt_tokens_total{transport="mqtt"} 7.0' in text
    assert 'edgekit_first_delta_seconds_count{transport="mqtt"} 1.0' in text
    assert 'edgekit_queue_seconds_sum{transport="mqtt"} 0.5' in text
    # 2 tokens after the first in 0.1 s.
    assert "edgekit_decode_tokens_per_second_sum 20.0" in text


def test_the_cost_of_an_answer_is_counted() -> None:
    metrics = Metrics()
    receive = metrics.track("http", lambda _: None)
    usage = Usage(100, 21, cached_tokens=60, accepted_tokens=8, rejected_tokens=4)
    timings = Timings(queue_s=0.25, prefill_s=0.5, decode_s=2.0, slowest_token_s=0.75, steps=10)
    receive(ToolCallDelta(0, 0, "", id="c", name="f"))
    receive(Finished("tool_calls", usage, timings))
    text = metrics.render()[0].decode()
    for line in (
        'edgekit_requests_total{outcome="tool_calls",transport="http"} 1.0',
        'edgekit_first_delta_seconds_count{transport="http"} 1.0',
        'edgekit_cached_prompt_tokens_total{transport="http"} 60.0',
        'edgekit_drafted_tokens_total{transport="http"} 12.0',
        'edgekit_accepted_tokens_total{transport="http"} 8.0',
        'edgekit_rejected_tokens_total{transport="http"} 4.0',
        'edgekit_prefill_seconds_sum{transport="http"} 0.5',
        'edgekit_first_token_seconds_sum{transport="http"} 0.75',
        'edgekit_step_seconds_sum{transport="http"} 0.2',
        'edgekit_slowest_token_seconds_sum{transport="http"} 0.75',
        # 40 tokens in half a second; 20 after the first in two.
        "edgekit_prompt_tokens_per_second_sum 80.0",
        "edgekit_decode_tokens_per_second_sum 10.0",
    ):
        assert f"{line}\n" in text


def test_a_request_that_never_began_has_no_first_token() -> None:
    metrics = Metrics()
    metrics.track("http", lambda _: None)(Finished("cancelled", Usage(9, 0), Timings(0.5, 0.0, 0.0)))
    text = metrics.render()[0].decode()
    assert 'edgekit_queue_seconds_count{transport="http"} 1.0' in text
    assert 'edgekit_first_token_seconds_count{transport="http"}' not in text


def test_failures_and_refusals_are_counted_by_code() -> None:
    metrics = Metrics()
    error = RequestError("late", code="deadline_exceeded")
    metrics.track("http", lambda _: None)(Failure(error))
    metrics.refused("http", UnavailableError("full", code="overloaded", retry_after_s=1.0))
    text = metrics.render()[0].decode()
    assert 'edgekit_requests_total{outcome="deadline_exceeded",transport="http"} 1.0' in text
    assert 'edgekit_requests_total{outcome="overloaded",transport="http"} 1.0' in text
    assert 'edgekit_refusals_total{code="overloaded",transport="http"} 1.0' in text
    assert 'edgekit_refusals_total{code="deadline_exceeded"' not in text


def test_the_workers_state_is_read_when_scraped() -> None:
    metrics = Metrics()
    length = 2
    better = (Rejected("cuda", "there is no GPU"),)
    info = ModelInfo("m", 0, 64, runner="cpu (avx2)", rejected=better)
    metrics.watch(info, queue_length=lambda: length, heartbeat_age=lambda: 1.5)
    assert "edgekit_queue_length 2.0" in metrics.render()[0].decode()
    length = 5
    text = metrics.render()[0].decode()
    assert "edgekit_queue_length 5.0" in text
    assert "edgekit_heartbeat_age_seconds 1.5" in text
    assert 'edgekit_model_info{context_length="64",name="m",runner="cpu (avx2)"} 1.0' in text
    assert 'edgekit_rejected_runner_info{reason="there is no GPU",runner="cuda"} 1.0' in text


def test_the_engines_state_is_read_once_per_scrape() -> None:
    metrics = Metrics()
    states: list[EngineStats] = []
    disk = DiskStats(blocks=1, used_bytes=512, read_bytes=0, written_bytes=0, evictions=6, damaged=1, dropped=2)
    prefix = PrefixStats(
        hits=7,
        misses=5,
        from_memory_bytes=64,
        from_disk_bytes=32,
        memory_bytes=1024,
        memory_evictions=3,
        slower=0,
        disk=disk,
    )

    def stats() -> EngineStats:
        states.append(EngineStats(len(states), 2, 4096, 1024, 8192, 4, prefix))
        return states[-1]

    metrics.watch(ModelInfo("m", 0, 64), queue_length=lambda: 0, heartbeat_age=lambda: 0.0, stats=stats)
    assert states == []
    text = metrics.render()[0].decode()
    for line in (
        "edgekit_running_sequences 0.0",
        "edgekit_waiting_requests 2.0",
        "edgekit_kv_bytes 4096.0",
        "edgekit_draft_kv_bytes 1024.0",
        "edgekit_kv_budget_bytes 8192.0",
        "edgekit_preempted_sequences_total 4.0",
        'edgekit_prefix_cache_bytes{where="memory"} 1024.0',
        'edgekit_prefix_cache_bytes{where="disk"} 512.0',
        'edgekit_prefix_cache_evictions_total{where="disk"} 6.0',
        "edgekit_prefix_cache_hit_tokens_total 7.0",
        "edgekit_prefix_cache_miss_tokens_total 5.0",
        "edgekit_prefix_cache_dropped_total 2.0",
    ):
        assert f"{line}\n" in text
    assert len(states) == 1
    assert "edgekit_running_sequences 1.0" in metrics.render()[0].decode()


def test_the_state_of_mqtt_is_read_when_scraped_and_absent_without_mqtt() -> None:
    metrics = Metrics()
    assert "edgekit_mqtt" not in metrics.render()[0].decode()
    states = [MqttStats(connected, *counts) for connected, counts in ((True, (1, 2, 3, 4, 5, 6, 7)), (False, (0,) * 7))]
    metrics.watch_mqtt(states.pop)
    assert "edgekit_mqtt_connected 0.0\n" in metrics.render()[0].decode()
    text = metrics.render()[0].decode()
    for line in (
        "edgekit_mqtt_connected 1.0",
        "edgekit_mqtt_reconnects_total 1.0",
        "edgekit_mqtt_unacknowledged_messages 2.0",
        "edgekit_mqtt_dropped_messages_total 3.0",
        "edgekit_mqtt_repeated_requests_total 4.0",
        "edgekit_mqtt_no_subscribers_total 5.0",
        "edgekit_mqtt_inbox_requests 6.0",
        "edgekit_mqtt_outbox_replies 7.0",
    ):
        assert f"{line}\n" in text


def test_two_daemons_in_one_process_do_not_share_counters() -> None:
    first, second = Metrics(), Metrics()
    first.refused("http", RequestError("no"))
    assert "invalid_request" not in second.render()[0].decode()


def test_energy_is_counted_on_a_machine_that_measures_it() -> None:
    metrics = Metrics()
    finish = Finished("stop", Usage(9, 5), Timings(0.5, 0.25, 1.0, prefill_j=3.0, decode_j=2.0))
    metrics.track("http", lambda _: None)(finish)
    assert "joules" not in metrics.render()[0].decode()
    metrics.watch_energy()
    metrics.track("http", lambda _: None)(finish)
    metrics.track("http", lambda _: None)(Finished("stop", Usage(9, 5), Timings(0.5, 0.25, 1.0)))
    text = metrics.render()[0].decode()
    assert 'edgekit_answer_energy_joules_total{transport="http"} 5.0\n' in text
    assert "edgekit_joules_per_token_sum 0.5\n" in text
    assert "edgekit_joules_per_token_count 1.0\n" in text
