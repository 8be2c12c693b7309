"""Samples the memory of a process over time, and detects growth."""

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
    """A sample of the process.

    Attributes:
        at_s: Seconds since the start.
        idle: No request was running, so memory in use is not temporary.
        rss: Resident set size, bytes.
        pss: Proportional set size, bytes; equal to `rss` if the system does not report it.
    """

    at_s: float
    idle: bool
    rss: int
    pss: int
    threads: int
    files: int


def sample(process: psutil.Process, at_s: float, *, idle: bool) -> Sample:
    """Take a sample."""
    memory = process.memory_full_info() if psutil.LINUX else process.memory_info()
    rss = int(memory.rss)
    return Sample(at_s, idle, rss, int(getattr(memory, "pss", rss)), process.num_threads(), process.num_fds())


@dataclass(frozen=True)
class Trend:
    """Trend of a series.

    An allocator's memory fluctuates, while leaked memory stays. So growth is judged by the floor, the lower quartile of
    each half, and the slope must agree.

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
        """Growth by the smaller of both measures, relative to the first half's floor; negative if it shrinks."""
        return min(self.late - self.early, self.drift) / self.early

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.count} samples, min {self.lowest:.1f}, median {self.median:.1f}, max {self.highest:.1f} MiB; "
            f"floor of the first half {self.early:.1f}, of the second {self.late:.1f}, slope over all "
            f"{self.drift:+.2f}: {100 * self.growth:+.2f} %"
        )


def trend(points: Sequence[tuple[float, float]]) -> Trend:
    """Compute the trend of at least four `(seconds, bytes)`, in MiB."""
    values = [value / MIB for _, value in points]
    half = len(values) // 2
    # A few thousand pairs are enough.
    subset = points[:: max(1, len(points) // 100)]
    slopes = [(b - a) / (later - at) for (at, a), (later, b) in combinations(subset, 2) if later > at]
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
