"""Compares restoring a token's KV cache with recomputing it; both are measured in use, in seconds per token."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

__all__ = ["Rates", "Source"]

Source = Literal["memory", "disk"]

# Weight of the newest measurement; a stall is forgotten within a few requests.
_SMOOTHING = 0.5
# A slow source is tried again after this time.
_RETRY_S = 60.0


class Rates:
    """Smoothed rates of prefill and of each source.

    Args:
        clock: Returns seconds; replaceable in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._prefill: float | None = None
        self._sources: dict[Source, tuple[float, float]] = {}

    def computed(self, tokens: int, seconds: float) -> None:
        """Record the duration of a prefill step."""
        if tokens > 0:
            self._prefill = _smooth(self._prefill, seconds / tokens)

    def fetched(self, source: Source, tokens: int, seconds: float) -> None:
        """Record how long restoring tokens took."""
        if tokens > 0:
            before = self._sources.get(source)
            self._sources[source] = (_smooth(before and before[0], seconds / tokens), self._clock())

    def should_restore(self, source: Source) -> bool:
        """Return whether restoring is faster than computing, or not known to be slower (an old measurement expires)."""
        if self._prefill is None or source not in self._sources:
            return True
        rate, when = self._sources[source]
        return rate < self._prefill or self._clock() - when > _RETRY_S

    def compute_s(self, tokens: int) -> float | None:
        """Return the seconds that computing so many tokens takes; None before the first prefill step."""
        return None if self._prefill is None else tokens * self._prefill


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else before + _SMOOTHING * (now - before)
