"""Energy that the board uses: its power, sampled by a thread and integrated."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["EnergyMark", "EnergyMeter"]

logger = logging.getLogger(__name__)

SAMPLE_S = 0.1
"""Interval of samples while the energy is asked for; the INA3221 averages over about as long."""
IDLE_S = 1.0
"""Interval otherwise."""
_ACTIVE_S = 2.0
_STALE_S = 3.0
"""Age of a sample above which the power is unknown."""


@dataclass(frozen=True, slots=True)
class EnergyMark:
    """The meter at one moment.

    Attributes:
        joules: Energy since the meter was made; None while the power is unknown.
        gaps: Times that the power was unknown before.
    """

    joules: float | None
    gaps: int

    def since(self, earlier: EnergyMark) -> float | None:
        """Return the energy between two marks in joules; None if the power was unknown meanwhile."""
        if self.joules is None or earlier.joules is None or self.gaps != earlier.gaps:
            return None
        return max(0.0, self.joules - earlier.joules)


class EnergyMeter:
    """Integrates power over time. `mark` may be called from any thread and takes microseconds.

    Between two samples the power is taken to be that of the earlier one, so that the energy at any moment is known at
    that moment and never corrected.

    Args:
        watts: Returns the power now; None if it cannot be read. Called on the meter's thread only.
        clock: Returns the time in seconds.
    """

    def __init__(self, watts: Callable[[], float | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._watts = watts
        self._clock = clock
        # Time, energy until then, power from then on, gaps: replaced as a whole, so that it is read without a lock.
        self._sample: tuple[float, float, float, int] | None = None
        self._asked = clock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def mark(self) -> EnergyMark:
        """Return the energy so far."""
        now = self._clock()
        if now - self._asked > _ACTIVE_S:
            self._wake.set()
        self._asked = now
        if self._sample is None:
            return EnergyMark(None, 0)
        at, joules, power, gaps = self._sample
        if now - at > _STALE_S:
            return EnergyMark(None, gaps)
        return EnergyMark(joules + power * max(0.0, now - at), gaps)

    def sample(self) -> None:
        """Read the power; the thread calls it."""
        power, now = self._watts(), self._clock()
        if power is None:
            return  # the last one holds for a while
        if self._sample is None:
            self._sample = now, 0.0, power, 0
            return
        at, joules, before, gaps = self._sample
        if now - at > _STALE_S:
            self._sample = now, joules, power, gaps + 1
        else:
            self._sample = now, joules + before * (now - at), power, gaps

    def start(self) -> None:
        """Read the power once, and start the thread that reads it from then on."""
        self.sample()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. May be called again."""
        self._stopping.set()
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._clock() - self._asked <= _ACTIVE_S:
                self._stopping.wait(SAMPLE_S)
            else:
                self._wake.wait(IDLE_S)
                self._wake.clear()
            try:
                self.sample()
            except Exception:
                # No known error ends here; without samples the energy is unknown.
                logger.exception("the power cannot be read")
                return
