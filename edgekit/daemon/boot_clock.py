"""A clock that goes on over restarts of the process, for times that are stored: many boards have no real-time clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BootClock", "Moment"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""It counts while the machine sleeps; macOS has no CLOCK_BOOTTIME, and its CLOCK_MONOTONIC does too."""

_NO_CLOCK_BEFORE_S = 1_735_689_600.0
"""A wall clock before 2025 has not been set."""
_DRIFT_S = 60.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time, as both clocks show it.

    Attributes:
        boot: Names the boot of the machine; empty if the system has no name for it.
        seconds: Since the boot.
        wall_s: Seconds since 1970 by the wall clock, which may be wrong.
    """

    boot: str
    seconds: float
    wall_s: float

    def seconds_at_boot(self, now: Moment) -> float:
        """Return what to subtract from seconds since this moment's boot to make them seconds since that of `now`.

        The time for which the machine was off counts as far as the wall clock is plausible: it was set, and has not
        gone back. Otherwise it does not count.
        """
        if self._same_boot(now):
            return 0.0
        off_s = 0.0
        if self.wall_s >= _NO_CLOCK_BEFORE_S:
            off_s = max(0.0, now.wall_s - now.seconds - self.wall_s)
        return self.seconds + off_s

    def _same_boot(self, now: Moment) -> bool:
        if self.boot and now.boot:
            return self.boot == now.boot
        drift_s = (now.wall_s - now.seconds) - (self.wall_s - self.seconds)
        return now.seconds >= self.seconds and abs(drift_s) < _DRIFT_S


class BootClock:
    """The machine's clocks; any thread may read them."""

    def __init__(self) -> None:
        try:
            self._boot = _BOOT_ID.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            self._boot = ""

    def now(self) -> float:
        """Seconds since the machine's boot, the time in which it slept included."""
        return time.clock_gettime(_CLOCK)

    def moment(self) -> Moment:
        """The present."""
        return Moment(self._boot, self.now(), time.time())
