"""Prometheus metrics by API key and model, with a bounded number of labels."""

from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry, Counter

from edgekit.errors import EdgekitError
from edgekit.generation.types import Failure, Finished

__all__ = ["KeyMetrics"]

MAX_KEYS = 32
"""Keys with a label of their own, the first to send a request; the others are counted as `other`."""
MAX_MODELS = 8
OTHER = "other"


class KeyMetrics:
    """Counts requests, tokens and time of each key; any thread may use it.

    Args:
        registry: Where the metrics are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["key", "model"]
        self._requests = Counter(
            "edgekit_key_requests",
            "Requests of an API key, by outcome: a finish reason or an error code.",
            [*labels, "outcome"],
            registry=registry,
        )
        self._tokens = Counter(
            "edgekit_key_tokens",
            "Tokens of an API key: prompt (cached ones included), cached, completion.",
            [*labels, "kind"],
            registry=registry,
        )
        self._queued = Counter(
            "edgekit_key_queue_seconds", "Time that requests of an API key have waited.", labels, registry=registry
        )
        self._lock = threading.Lock()
        self._keys: set[str] = set()
        self._models: set[str] = set()

    def ended(self, key: str, model: str, event: Finished | Failure) -> None:
        """Count a request that has ended.

        Args:
            key: The key's label.
            model: The model's name.
            event: Its last event.
        """
        labels = self._labels(key, model)
        if isinstance(event, Failure):
            self._requests.labels(*labels, event.error.code).inc()
            return
        self._requests.labels(*labels, event.reason).inc()
        self._queued.labels(*labels).inc(event.timings.queue_s)
        usage = event.usage
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
        ):
            self._tokens.labels(*labels, kind).inc(count)

    def refused(self, key: str, model: str, error: EdgekitError) -> None:
        """Count a request that was not accepted."""
        self._requests.labels(*self._labels(key, model), error.code).inc()

    def _labels(self, key: str, model: str) -> tuple[str, str]:
        with self._lock:
            return _bounded(self._keys, key, MAX_KEYS), _bounded(self._models, model, MAX_MODELS)


def _bounded(known: set[str], label: str, limit: int) -> str:
    if label not in known and len(known) < limit:
        known.add(label)
    return label if label in known else OTHER
