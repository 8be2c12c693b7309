"""Prometheus metrics of the daemon; both transports pass their requests' events through `Metrics`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from edgekit import __version__
from edgekit.daemon.build_state import PHASES, BuildState
from edgekit.daemon.key_metrics import KeyMetrics
from edgekit.daemon.readings import AnswerTotals
from edgekit.errors import EdgekitError
from edgekit.generation.engine.engine import EngineStats
from edgekit.generation.model import ModelInfo
from edgekit.generation.types import ChoiceFinished, Event, Failure, Finished

__all__ = ["Metrics", "MqttStats"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_RATES = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 75.0, 100.0, 200.0, 500.0, 1000.0)
_JOULES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
_PROMPT_RATES = (10.0, 25.0, 50.0, 100.0, 200.0, 300.0, 500.0, 750.0, 1000.0, 2000.0, 5000.0, 10_000.0, 50_000.0)


@dataclass(frozen=True, slots=True)
class MqttStats:
    """State of the MQTT service, and counters since its start.

    Attributes:
        connected: Whether requests can be received and answers sent.
        reconnects: Connections made after the first one.
        unacknowledged: Messages published that the broker has not acknowledged yet.
        dropped: Messages not delivered: too many were queued, or the broker does not take them.
        repeated: Requests that were a repetition of a running or answered one.
        no_subscribers: Requests cancelled because their response topic had no subscribers.
        unanswered: Requests accepted and not answered.
        unsent: Stored replies that the broker has not acknowledged.
    """

    connected: bool
    reconnects: int
    unacknowledged: int
    dropped: int
    repeated: int
    no_subscribers: int
    unanswered: int
    unsent: int


class Metrics:
    """The daemon's metrics, in a registry of their own, so that two daemons in one process do not share counters.

    Attributes:
        by_key: Those of each API key.
        totals: The answers that have ended.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.totals = AnswerTotals()
        self._requests = self._counter(
            "edgekit_requests", "Requests completed, by outcome: a finish reason or an error code.", "outcome"
        )
        self._refusals = self._counter("edgekit_refusals", "Requests rejected, by error code.", "code")
        self._prompt_tokens = self._counter("edgekit_prompt_tokens", "Prompt tokens.")
        self._cached_tokens = self._counter("edgekit_cached_prompt_tokens", "Prompt tokens whose KV cache was reused.")
        self._completion_tokens = self._counter("edgekit_completion_tokens", "Tokens generated.")
        self._drafted = self._counter("edgekit_drafted_tokens", "Draft tokens verified.")
        self._accepted = self._counter("edgekit_accepted_tokens", "Draft tokens accepted.")
        self._rejected = self._counter("edgekit_rejected_tokens", "Draft tokens rejected.")
        self._duration = self._histogram("edgekit_request_seconds", "Time from submission to completion.")
        self._queued = self._histogram("edgekit_queue_seconds", "Time from submission to the first step.")
        self._prefill = self._histogram("edgekit_prefill_seconds", "Time from the first step to the first token.")
        self._first_token = self._histogram("edgekit_first_token_seconds", "Time from submission to the first token.")
        self._first_delta = self._histogram("edgekit_first_delta_seconds", "Time from submission to the first delta.")
        self._step = self._histogram("edgekit_step_seconds", "Mean decoding step of a request.", buckets=_STEPS)
        self._slowest = self._histogram(
            "edgekit_slowest_token_seconds", "Longest time between two tokens of a request.", buckets=_STEPS
        )
        registry = self._registry
        self._prompt_rate = Histogram(
            "edgekit_prompt_tokens_per_second",
            "Prefill speed, cached tokens excluded.",
            buckets=_PROMPT_RATES,
            registry=registry,
        )
        self._rate = Histogram("edgekit_decode_tokens_per_second", "Decode speed.", buckets=_RATES, registry=registry)
        self._queue_length = Gauge("edgekit_queue_length", "Requests waiting or running.", registry=registry)
        self._heartbeat = Gauge(
            "edgekit_heartbeat_age_seconds", "Time since the generation loop last made progress.", registry=registry
        )
        started = Gauge("edgekit_start_time_seconds", "Start time of the daemon, since the epoch.", registry=registry)
        started.set(time.time())
        Info("edgekit_build", "The daemon.", registry=registry).info({"version": __version__})
        self._model = Info("edgekit_model", "The served model.", registry=registry)
        self._rejected_runners = Gauge(
            "edgekit_rejected_runner_info",
            "1 for each runner better than the one in use that does not work here.",
            ["runner", "reason"],
            registry=registry,
        )
        self._energy: Counter | None = None
        self._joules: Histogram | None = None
        self.by_key = KeyMetrics(registry)

    def watch(
        self,
        info: ModelInfo,
        *,
        queue_length: Callable[[], int],
        heartbeat_age: Callable[[], float],
        stats: Callable[[], EngineStats] | None = None,
    ) -> None:
        """Name the model, and read the engine's state at each scrape.

        Args:
            info: The model.
            queue_length: Returns the number of requests waiting or running.
            heartbeat_age: Returns the seconds since the generation loop last made progress.
            stats: Returns the engine's state; called once per scrape, on any thread.
        """
        self.describe(info)
        self._queue_length.set_function(queue_length)
        self._heartbeat.set_function(heartbeat_age)
        if stats is not None:
            self._registry.register(_EngineCollector(stats))

    def describe(self, info: ModelInfo) -> None:
        """Name the model and its runner, again if they change."""
        self._model.info({"name": info.name, "context_length": str(info.context_length), "runner": info.runner})
        self._rejected_runners.clear()
        for one in info.rejected:
            self._rejected_runners.labels(one.name, one.reason).set(1)

    def watch_build(self, state: Callable[[], BuildState | None]) -> None:
        """Show how far the engine is that the daemon builds.

        Args:
            state: Returns it; None once it is over.
        """
        self._registry.register(_BuildCollector(state))

    def watch_mqtt(self, stats: Callable[[], MqttStats]) -> None:
        """Read the MQTT service's state at each scrape.

        Args:
            stats: Returns it; called once per scrape, on any thread.
        """
        self._registry.register(_MqttCollector(stats))

    def watch_device(self, metrics: Callable[[], Iterable[Metric]]) -> None:
        """Add the metrics of the machine.

        Args:
            metrics: Returns them; called once per scrape. It may take tens of milliseconds.
        """
        self._registry.register(_DeviceCollector(metrics))

    def watch_energy(self) -> None:
        """Count the energy of answers, on a machine that measures it."""
        self._energy = self._counter("edgekit_answer_energy_joules", "Energy of the steps of answers.")
        self._joules = Histogram(
            "edgekit_joules_per_token", "Energy of a decoded token.", buckets=_JOULES, registry=self._registry
        )

    def track(self, transport: str, on_event: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return a receiver that counts one request's events and passes them on.

        Call it just before `submit`; count a request that `submit` rejects with `refused`.

        Args:
            transport: `http` or `mqtt`.
            on_event: The transport's own receiver.
        """
        submitted = time.monotonic()

        def receive(event: Event) -> None:
            if isinstance(event, Finished | Failure):
                self._end(transport, event, time.monotonic() - submitted)
            elif not isinstance(event, ChoiceFinished) and event.seq == 0:
                self._first_delta.labels(transport).observe(time.monotonic() - submitted)
            on_event(event)

        return receive

    def refused(self, transport: str, error: EdgekitError) -> None:
        """Count a rejected request."""
        self._requests.labels(transport, error.code).inc()
        self._refusals.labels(transport, error.code).inc()

    def render(self) -> tuple[bytes, str]:
        """Return the body of `/metrics` and its content type; any thread may call this."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _end(self, transport: str, event: Finished | Failure, seconds: float) -> None:
        self._duration.labels(transport).observe(seconds)
        if isinstance(event, Failure):
            self._requests.labels(transport, event.error.code).inc()
            return
        usage, timings = event.usage, event.timings
        self.totals.add(usage, timings)
        self._requests.labels(transport, event.reason).inc()
        self._prompt_tokens.labels(transport).inc(usage.prompt_tokens)
        self._cached_tokens.labels(transport).inc(usage.cached_tokens)
        self._completion_tokens.labels(transport).inc(usage.completion_tokens)
        self._drafted.labels(transport).inc(usage.accepted_tokens + usage.rejected_tokens)
        self._accepted.labels(transport).inc(usage.accepted_tokens)
        self._rejected.labels(transport).inc(usage.rejected_tokens)
        self._queued.labels(transport).observe(timings.queue_s)
        if usage.completion_tokens:
            # A request cancelled in the queue has no first token.
            self._prefill.labels(transport).observe(timings.prefill_s)
            self._first_token.labels(transport).observe(timings.first_token_s)
        if timings.steps:
            self._step.labels(transport).observe(timings.decode_s / timings.steps)
            self._slowest.labels(transport).observe(timings.slowest_token_s)
        rates = timings.as_rates(usage)
        if "prompt_tokens_per_s" in rates:
            self._prompt_rate.observe(rates["prompt_tokens_per_s"])
        if "decode_tokens_per_s" in rates:
            self._rate.observe(rates["decode_tokens_per_s"])
        energy = timings.as_energy(usage)
        if energy and self._energy is not None:
            self._energy.labels(transport).inc(energy["prefill_j"] + energy["decode_j"])
        if "joules_per_token" in energy and self._joules is not None:
            self._joules.observe(energy["joules_per_token"])

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, ["transport", *labels], registry=self._registry)

    def _histogram(self, name: str, help_text: str, *, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(name, help_text, ["transport"], buckets=buckets, registry=self._registry)


class _StateCollector(Collector):
    """Reads state when it is scraped, and only then."""

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registration must not read the state."""
        return ()


class _EngineCollector(_StateCollector):
    """Reads the engine's state once per scrape, so that the values of a scrape are consistent."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges and counters."""
        state = self._stats()
        yield GaugeMetricFamily(
            "edgekit_running_sequences", "Sequences being prefilled or decoded.", value=state.running
        )
        yield GaugeMetricFamily(
            "edgekit_waiting_requests", "Requests waiting for a sequence slot.", value=state.waiting
        )
        yield GaugeMetricFamily(
            "edgekit_kv_bytes", "KV cache in the sequence slots, the draft model's included.", value=state.kv_bytes
        )
        yield GaugeMetricFamily("edgekit_draft_kv_bytes", "The draft model's KV cache.", value=state.draft_kv_bytes)
        yield GaugeMetricFamily("edgekit_kv_budget_bytes", "Maximum of edgekit_kv_bytes.", value=state.kv_budget_bytes)
        yield CounterMetricFamily(
            "edgekit_preempted_sequences", "Sequences preempted for lack of KV cache.", value=state.preempted
        )
        if state.prefix is None:
            return
        prefix, disk = state.prefix, state.prefix.disk
        used = GaugeMetricFamily("edgekit_prefix_cache_bytes", "KV cache in the prefix cache.", labels=["where"])
        used.add_metric(["memory"], prefix.memory_bytes)
        read = CounterMetricFamily(
            "edgekit_prefix_cache_read_bytes", "KV cache restored from the prefix cache.", labels=["where"]
        )
        read.add_metric(["memory"], prefix.from_memory_bytes)
        evicted = CounterMetricFamily(
            "edgekit_prefix_cache_evictions", "Blocks evicted from the prefix cache.", labels=["where"]
        )
        evicted.add_metric(["memory"], prefix.memory_evictions)
        if disk is not None:
            used.add_metric(["disk"], disk.used_bytes)
            read.add_metric(["disk"], prefix.from_disk_bytes)
            evicted.add_metric(["disk"], disk.evictions)
            yield CounterMetricFamily(
                "edgekit_prefix_cache_damaged", "Prefix cache blocks on disk found damaged.", value=disk.damaged
            )
            yield CounterMetricFamily(
                "edgekit_prefix_cache_dropped", "Prefix cache blocks not written to disk.", value=disk.dropped
            )
        yield from (used, read, evicted)
        yield CounterMetricFamily(
            "edgekit_prefix_cache_hit_tokens", "Prompt tokens restored from the prefix cache.", value=prefix.hits
        )
        yield CounterMetricFamily(
            "edgekit_prefix_cache_miss_tokens",
            "Prompt tokens looked up in the prefix cache and not restored.",
            value=prefix.misses,
        )


class _MqttCollector(_StateCollector):
    """Reads the MQTT service's state once per scrape."""

    def __init__(self, stats: Callable[[], MqttStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges and counters."""
        state = self._stats()
        yield GaugeMetricFamily(
            "edgekit_mqtt_connected", "1 while connected to the broker and subscribed, else 0.", value=state.connected
        )
        yield GaugeMetricFamily(
            "edgekit_mqtt_unacknowledged_messages",
            "Messages published and not yet acknowledged by the broker.",
            value=state.unacknowledged,
        )
        yield GaugeMetricFamily(
            "edgekit_mqtt_inbox_requests", "Requests accepted and not answered.", value=state.unanswered
        )
        yield GaugeMetricFamily(
            "edgekit_mqtt_outbox_replies",
            "Last messages of requests that the broker has not acknowledged.",
            value=state.unsent,
        )
        for name, help_text, value in (
            ("reconnects", "Connections to the broker after the first.", state.reconnects),
            (
                "dropped_messages",
                "Messages dropped: the queue was full, or the broker does not take them.",
                state.dropped,
            ),
            ("repeated_requests", "Requests that repeated a running or answered one.", state.repeated),
            (
                "no_subscribers",
                "Requests cancelled for lack of subscribers to their response topic.",
                state.no_subscribers,
            ),
        ):
            yield CounterMetricFamily(f"edgekit_mqtt_{name}", help_text, value=value)


class _BuildCollector(_StateCollector):
    """Reads how far the build of an engine is once per scrape."""

    def __init__(self, state: Callable[[], BuildState | None]) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges."""
        state = self._state()
        phases = GaugeMetricFamily(
            "edgekit_engine_build", "1 for what is done for the TensorRT engine now, else 0.", labels=["phase"]
        )
        for phase in PHASES:
            phases.add_metric([phase], float(state is not None and state.phase == phase))
        yield phases
        yield GaugeMetricFamily(
            "edgekit_engine_build_ratio",
            "Finished share of the build of the TensorRT engine, 0 to 1; 1 also once it is over.",
            value=1.0 if state is None else state.share,
        )


class _DeviceCollector(_StateCollector):
    """Reads the machine's sensors once per scrape."""

    def __init__(self, metrics: Callable[[], Iterable[Metric]]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        return self._metrics()
