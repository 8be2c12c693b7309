"""Watches a Jetson's sensors while something runs: the extremes, and whether the clocks were lowered meanwhile."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from edgekit.jetson.device import Jetson

__all__ = ["BoardWatch", "Conditions"]

SAMPLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the sensors read over a time; what cannot be read is None or empty.

    Attributes:
        start_c: The hottest thermal zone's temperature at the beginning.
        max_c: The highest temperature of any zone.
        max_watts: The highest power of the board.
        gpu_clock_hz: The highest clock of the GPU.
        gpu_max_clock_hz: The highest one that the power mode allows.
        throttled_by: Alerts and overcurrent rails for which the clocks were lowered at any time; None without sensors.
        overcurrent_events: How often the clocks were lowered meanwhile, by the kind of event; only those above 0.
    """

    start_c: float | None
    max_c: float | None
    max_watts: float | None
    gpu_clock_hz: int | None
    gpu_max_clock_hz: int | None
    throttled_by: tuple[str, ...] | None
    overcurrent_events: dict[str, int]


class BoardWatch:
    """Samples the sensors about once a second, on a thread, between `start` and `stop`.

    Args:
        jetson: The board.
    """

    def __init__(self, jetson: Jetson) -> None:
        self._jetson = jetson
        self._readings = [jetson.read()]
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="sensors", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and sample once more. May be called without `start`."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.sample()

    def sample(self) -> None:
        """Read the sensors."""
        self._readings.append(self._jetson.read())

    def conditions(self) -> Conditions:
        """Return what the sensors read so far."""
        readings = list(self._readings)
        first, last = readings[0], readings[-1]
        throttled = [one.throttled_by for one in readings if one.throttled_by is not None]
        events = {
            name: count - first.overcurrent_events.get(name, 0) for name, count in last.overcurrent_events.items()
        }
        return Conditions(
            start_c=max(first.temperatures.values(), default=None),
            max_c=max((value for one in readings for value in one.temperatures.values()), default=None),
            max_watts=max((one.total_watts for one in readings if one.total_watts is not None), default=None),
            gpu_clock_hz=max((one.gpu.clock_hz for one in readings if one.gpu.clock_hz is not None), default=None),
            gpu_max_clock_hz=last.gpu.max_clock_hz,
            throttled_by=tuple(dict.fromkeys(name for names in throttled for name in names)) if throttled else None,
            overcurrent_events={name: count for name, count in events.items() if count > 0},
        )

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_S):
            self.sample()
