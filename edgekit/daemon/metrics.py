"""What the daemon counts, for Prometheus. Both doors pass their events through it; it knows no transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from edgekit import __version__
from edgekit.errors import EdgekitError
from edgekit.generation.engine import EngineStats
from edgekit.generation.model import ModelInfo
from edgekit.generation.request import Ended, Event, Failure, Finish

__all__ = ["Metrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_RATES = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 75.0, 100.0, 200.0, 500.0, 1000.0)
_PROMPT_RATES = (10.0, 25.0, 50.0, 100.0, 200.0, 300.0, 500.0, 750.0, 1000.0, 2000.0, 5000.0, 10_000.0, 50_000.0)


class Metrics:
    """Counters in a registry of their own, so that two daemons in one process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter(
            "edgekit_requests", "Requests that ended, by outcome: a finish reason or an error's code.", "outcome"
        )
        self._refusals = self._counter("edgekit_refusals", "Requests that were not accepted, by code.", "code")
        self._prompt_tokens = self._counter("edgekit_prompt_tokens", "Prompt tokens taken in.")
        self._cached_tokens = self._counter(
            "edgekit_cached_prompt_tokens", "Prompt tokens whose KV cache was there already."
        )
        self._completion_tokens = self._counter("edgekit_completion_tokens", "Tokens generated.")
        self._drafted = self._counter("edgekit_drafted_tokens", "Tokens guessed ahead.")
        self._accepted = self._counter("edgekit_accepted_tokens", "Tokens guessed ahead rightly.")
        self._rejected = self._counter("edgekit_rejected_tokens", "Tokens guessed ahead wrongly.")
        self._duration = self._histogram("edgekit_request_seconds", "From submission to the end.")
        self._queued = self._histogram("edgekit_queue_seconds", "From submission to the start.")
        self._prefill = self._histogram("edgekit_prefill_seconds", "From the start to the first token.")
        self._first_token = self._histogram("edgekit_first_token_seconds", "From submission to the first token.")
        self._first = self._histogram("edgekit_first_delta_seconds", "From submission to the first text.")
        self._step = self._histogram(
            "edgekit_step_seconds", "Mean seconds per decoding step of an answer.", buckets=_STEPS
        )
        self._slowest = self._histogram(
            "edgekit_slowest_token_seconds", "Longest wait between two tokens of an answer.", buckets=_STEPS
        )
        registry = self._registry
        self._prompt_rate = Histogram(
            "edgekit_prompt_tokens_per_second",
            "Prefill speed of prompts, without what was cached.",
            buckets=_PROMPT_RATES,
            registry=registry,
        )
        self._rate = Histogram(
            "edgekit_decode_tokens_per_second", "Decode speed of answers.", buckets=_RATES, registry=registry
        )
        self._queue_length = Gauge("edgekit_queue_length", "Requests accepted and not yet over.", registry=registry)
        self._heartbeat = Gauge(
            "edgekit_heartbeat_age_seconds", "Since the generation loop last moved.", registry=registry
        )
        started = Gauge("edgekit_start_time_seconds", "When the daemon started, since the epoch.", registry=registry)
        started.set(time.time())
        Info("edgekit_build", "The daemon.", registry=registry).info({"version": __version__})
        self._model = Info("edgekit_model", "The model that answers.", registry=registry)

    def watch(
        self,
        info: ModelInfo,
        *,
        queue_length: Callable[[], int],
        heartbeat_age: Callable[[], float],
        stats: Callable[[], EngineStats] | None = None,
    ) -> None:
        """Name the model, and read the scheduler's state at each scrape.

        Args:
            info: The model.
            queue_length: Requests accepted and not yet over.
            heartbeat_age: Seconds since the generation loop last moved.
            stats: The rest of what the core knows; called from the door's threads, once per scrape.
        """
        self._model.info({"name": info.name, "context_length": str(info.context_length), "runner": info.runner})
        self._queue_length.set_function(queue_length)
        self._heartbeat.set_function(heartbeat_age)
        if stats is not None:
            self._registry.register(_Engine(stats))

    def track(self, door: str, on_event: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return a receiver of one request's events that counts them and passes them on.

        Call it just before `submit`; a request that `submit` refuses is counted with `refused`.

        Args:
            door: `http` or `mqtt`.
            on_event: The door's own receiver.
        """
        submitted = time.monotonic()

        def receive(event: Event) -> None:
            if isinstance(event, Finish | Failure):
                self._end(door, event, time.monotonic() - submitted)
            elif not isinstance(event, Ended) and event.seq == 0:
                self._first.labels(door).observe(time.monotonic() - submitted)
            on_event(event)

        return receive

    def refused(self, door: str, error: EdgekitError) -> None:
        """Count a request that was not accepted."""
        self._requests.labels(door, error.code).inc()
        self._refusals.labels(door, error.code).inc()

    def render(self) -> tuple[bytes, str]:
        """Return the text of `/metrics` and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _end(self, door: str, event: Finish | Failure, seconds: float) -> None:
        self._duration.labels(door).observe(seconds)
        if isinstance(event, Failure):
            self._requests.labels(door, event.error.code).inc()
            return
        usage, timings = event.usage, event.timings
        self._requests.labels(door, event.reason).inc()
        self._prompt_tokens.labels(door).inc(usage.prompt_tokens)
        self._cached_tokens.labels(door).inc(usage.cached_tokens)
        self._completion_tokens.labels(door).inc(usage.completion_tokens)
        self._drafted.labels(door).inc(usage.accepted_tokens + usage.rejected_tokens)
        self._accepted.labels(door).inc(usage.accepted_tokens)
        self._rejected.labels(door).inc(usage.rejected_tokens)
        self._queued.labels(door).observe(timings.queue_s)
        if usage.completion_tokens:
            # What was cancelled while it waited has no first token.
            self._prefill.labels(door).observe(timings.prefill_s)
            self._first_token.labels(door).observe(timings.first_token_s)
        if timings.steps:
            self._step.labels(door).observe(timings.decode_s / timings.steps)
            self._slowest.labels(door).observe(timings.slowest_token_s)
        rates = timings.as_rates(usage)
        if "prompt_tokens_per_s" in rates:
            self._prompt_rate.observe(rates["prompt_tokens_per_s"])
        if "decode_tokens_per_s" in rates:
            self._rate.observe(rates["decode_tokens_per_s"])

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, ["door", *labels], registry=self._registry)

    def _histogram(self, name: str, what: str, *, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(name, what, ["door"], buckets=buckets, registry=self._registry)


class _Engine(Collector):
    """Reads all of the core's state at once, so that the figures of one scrape belong together."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask for the state."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges and counters."""
        state = self._stats()
        yield GaugeMetricFamily(
            "edgekit_running_sequences", "Sequences being prefilled or decoded.", value=state.running
        )
        yield GaugeMetricFamily("edgekit_waiting_requests", "Requests that have not begun.", value=state.waiting)
        yield GaugeMetricFamily(
            "edgekit_kv_bytes", "KV cache in the sequence slots, the draft model's too.", value=state.kv_bytes
        )
        yield GaugeMetricFamily("edgekit_draft_kv_bytes", "The draft model's part of it.", value=state.draft_kv_bytes)
        yield GaugeMetricFamily("edgekit_kv_budget_bytes", "Most it may be.", value=state.kv_budget_bytes)
        yield CounterMetricFamily(
            "edgekit_preempted_sequences", "Sequences that gave their slot up for others.", value=state.preempted
        )
        if state.prefix is None:
            return
        prefix, disk = state.prefix, state.prefix.disk
        held = GaugeMetricFamily("edgekit_prefix_cache_bytes", "What the prefix cache holds.", labels=["where"])
        held.add_metric(["memory"], prefix.memory_bytes)
        read = CounterMetricFamily("edgekit_prefix_cache_read_bytes", "KV cache put back.", labels=["where"])
        read.add_metric(["memory"], prefix.from_memory_bytes)
        evicted = CounterMetricFamily("edgekit_prefix_cache_evictions", "Blocks given up for others.", labels=["where"])
        evicted.add_metric(["memory"], prefix.memory_evictions)
        if disk is not None:
            held.add_metric(["disk"], disk.used_bytes)
            read.add_metric(["disk"], prefix.from_disk_bytes)
            evicted.add_metric(["disk"], disk.evictions)
            yield CounterMetricFamily(
                "edgekit_prefix_cache_damaged", "Blocks on disk that were not what they should be.", value=disk.damaged
            )
            yield CounterMetricFamily("edgekit_prefix_cache_dropped", "Blocks not written to disk.", value=disk.dropped)
        yield from (held, read, evicted)
        yield CounterMetricFamily(
            "edgekit_prefix_cache_hit_tokens", "Prompt tokens put back by the prefix cache.", value=prefix.hits
        )
        yield CounterMetricFamily(
            "edgekit_prefix_cache_miss_tokens",
            "Prompt tokens it was asked for and did not put back.",
            value=prefix.misses,
        )
