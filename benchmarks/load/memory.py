"""Memory of a process over time, and whether it grows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import psutil

__all__ = ["Sample", "Trend", "sample", "trend"]

MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """One look at the process.

    Attributes:
        at_s: Seconds since the beginning.
        resting: Nobody was asking: what is held now is held for good.
        rss: Resident bytes.
        pss: The same with shared pages counted in parts; equal to `rss` where the system does not say.
    """

    at_s: float
    resting: bool
    rss: int
    pss: int
    threads: int
    files: int


def sample(process: psutil.Process, at_s: float, *, resting: bool) -> Sample:
    """Look once."""
    memory = process.memory_full_info() if psutil.LINUX else process.memory_info()
    rss = int(memory.rss)
    return Sample(at_s, resting, rss, int(getattr(memory, "pss", rss)), process.num_threads(), process.num_fds())


@dataclass(frozen=True)
class Trend:
    """How a series moves.

    An allocator holds more at one time and less at another; what leaks is held for good. So the floor tells, the lower
    quartile of each half, and the slope must agree.

    Attributes:
        early: Lower quartile of the first half.
        late: Lower quartile of the second half.
        drift: Theil-Sen slope (the median over all pairs), times the length of the series.
    """

    count: int
    lowest: float
    median: float
    highest: float
    early: float
    late: float
    drift: float

    @property
    def growth(self) -> float:
        """What both measures agree on, as a part of the first half's floor; below 0 where it shrinks."""
        return min(self.late - self.early, self.drift) / self.early

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.count} samples, least {self.lowest:.1f}, median {self.median:.1f}, most {self.highest:.1f} MiB; "
            f"floor of the first half {self.early:.1f}, of the second {self.late:.1f}, slope over all "
            f"{self.drift:+.2f}: {100 * self.growth:+.2f} %"
        )


def trend(points: Sequence[tuple[float, float]]) -> Trend:
    """Return the trend of at least four `(seconds, bytes)`, in MiB."""
    values = [value / MIB for _, value in points]
    half = len(values) // 2
    # Of very many points some thousand pairs are enough.
    some = points[:: max(1, len(points) // 100)]
    slopes = [(b - a) / (later - at) for (at, a), (later, b) in combinations(some, 2) if later > at]
    length = points[-1][0] - points[0][0]
    return Trend(
        len(values),
        min(values),
        statistics.median(values),
        max(values),
        _lower_quartile(values[:half]),
        _lower_quartile(values[-half:]),
        statistics.median(slopes) * length / MIB if slopes else 0.0,
    )


def _lower_quartile(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 4]
