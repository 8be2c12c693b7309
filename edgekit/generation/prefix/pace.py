"""What is faster: fetching a token's KV cache or computing it. Measured while both are done, in seconds per token.

It knows no model: a rate follows what the last steps took, whatever they were taken on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

__all__ = ["Pace", "Source"]

Source = Literal["memory", "disk"]

# Weight of the newest measurement, which forgets a stall within a few requests.
_NEWEST = 0.5
# A source that lost is tried again after so long: whatever slowed it may be over.
_RETRY_S = 60.0


class Pace:
    """Smoothed rates of prefill and of each source.

    Args:
        clock: Seconds; tests bring their own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._prefill: float | None = None
        self._sources: dict[Source, tuple[float, float]] = {}

    def computed(self, tokens: int, seconds: float) -> None:
        """Note how long a step of prefill took."""
        if tokens > 0:
            self._prefill = _smooth(self._prefill, seconds / tokens)

    def fetched(self, source: Source, tokens: int, seconds: float) -> None:
        """Note how long it took to put tokens back."""
        if tokens > 0:
            before = self._sources.get(source)
            self._sources[source] = (_smooth(before and before[0], seconds / tokens), self._clock())

    def pays(self, source: Source) -> bool:
        """Whether fetching is faster than computing, as far as is known; a stale loss counts as unknown."""
        if self._prefill is None or source not in self._sources:
            return True
        rate, when = self._sources[source]
        return rate < self._prefill or self._clock() - when > _RETRY_S

    def to_compute(self, tokens: int) -> float | None:
        """Seconds that computing so many tokens takes; None if no step was ever seen."""
        return None if self._prefill is None else tokens * self._prefill


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else before + _NEWEST * (now - before)
