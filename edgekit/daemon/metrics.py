"""What the daemon counts, for Prometheus. Both doors pass their events through it; it knows no transport."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from edgekit import __version__
from edgekit.errors import EdgekitError
from edgekit.generation.model import ModelInfo
from edgekit.generation.request import Delta, Event, Failure, Finish

__all__ = ["Metrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)
_RATES = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 75.0, 100.0, 200.0, 500.0, 1000.0)


class Metrics:
    """Counters in a registry of their own, so that two daemons in one process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter(
            "edgekit_requests",
            "Requests that ended, by door and outcome: a finish reason or an error's code.",
            ["door", "outcome"],
            registry=registry,
        )
        self._prompt_tokens = Counter("edgekit_prompt_tokens", "Prompt tokens taken in.", ["door"], registry=registry)
        self._completion_tokens = Counter("edgekit_completion_tokens", "Tokens generated.", ["door"], registry=registry)
        self._duration = Histogram(
            "edgekit_request_seconds", "From submission to the end.", ["door"], buckets=_SECONDS, registry=registry
        )
        self._first = Histogram(
            "edgekit_first_delta_seconds",
            "From submission to the first text.",
            ["door"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._queued = Histogram(
            "edgekit_queue_seconds", "From submission to the start.", ["door"], buckets=_SECONDS, registry=registry
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

    def watch(self, info: ModelInfo, *, queue_length: Callable[[], int], heartbeat_age: Callable[[], float]) -> None:
        """Name the model, and read the scheduler's state at each scrape."""
        self._model.info({"name": info.name, "context_length": str(info.context_length)})
        self._queue_length.set_function(queue_length)
        self._heartbeat.set_function(heartbeat_age)

    def track(self, door: str, on_event: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return a receiver of one request's events that counts them and passes them on.

        Call it just before `submit`; a request that `submit` refuses is counted with `refused`.

        Args:
            door: `http` or `mqtt`.
            on_event: The door's own receiver.
        """
        submitted = time.monotonic()

        def receive(event: Event) -> None:
            if isinstance(event, Delta):
                if event.seq == 0:
                    self._first.labels(door).observe(time.monotonic() - submitted)
            else:
                self._end(door, event, time.monotonic() - submitted)
            on_event(event)

        return receive

    def refused(self, door: str, error: EdgekitError) -> None:
        """Count a request that was not accepted."""
        self._requests.labels(door, error.code).inc()

    def render(self) -> tuple[bytes, str]:
        """Return the text of `/metrics` and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _end(self, door: str, event: Finish | Failure, seconds: float) -> None:
        self._duration.labels(door).observe(seconds)
        if isinstance(event, Failure):
            self._requests.labels(door, event.error.code).inc()
            return
        self._requests.labels(door, event.reason).inc()
        self._prompt_tokens.labels(door).inc(event.usage.prompt_tokens)
        self._completion_tokens.labels(door).inc(event.usage.completion_tokens)
        self._queued.labels(door).observe(event.timings.queue_s)
        rate = event.timings.as_rates(event.usage).get("decode_tokens_per_s")
        if rate is not None:
            self._rate.observe(rate)
