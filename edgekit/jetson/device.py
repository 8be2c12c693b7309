"""A Jetson as a whole: what it is, and what its sensors read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.jetson.board import Board, device_tree, find_board
from edgekit.jetson.gpu import GpuState, find_gpu
from edgekit.jetson.jetpack import JetPack, find_jetpack
from edgekit.jetson.power_mode import PowerMode, find_power_mode
from edgekit.jetson.rails import find_rails, total_watts
from edgekit.jetson.thermal import find_thermal

__all__ = ["Jetson", "Reading", "find_jetson"]

_FRESH_S = 1.0
"""A reading is used again for this long: it takes about a hundred files, some of them transfers on a slow bus."""
_MODE_FRESH_S = 30.0
"""As above for the power mode, which may take a program."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The sensors at one moment; what cannot be read is absent.

    Attributes:
        power_mode: The power mode; None if unknown.
        gpu: Load and clock of the GPU.
        temperatures: °C by thermal zone.
        watts: Power by supply rail.
        total_watts: Power of the board; None if unknown.
        throttled_by: Alerts and overcurrent rails for which the clocks are lowered now; None if there are no such
            sensors.
        overcurrent_events: How often the clocks were lowered since boot, by the kind of event.
    """

    power_mode: PowerMode | None
    gpu: GpuState
    temperatures: dict[str, float]
    watts: dict[str, float]
    total_watts: float | None
    throttled_by: tuple[str, ...] | None
    overcurrent_events: dict[str, int]


class Jetson:
    """The board that this process runs on. All methods may be called from any thread, and none raises.

    Args:
        board: From `find_board`.
        root: Folder that contains /etc, /proc, /sys and /var.
        clock: Returns the time in seconds.

    Attributes:
        board: As given.
        jetpack: Its JetPack; None if the system does not say which.
        rails: Its supply rails.
    """

    def __init__(self, board: Board, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.board = board
        self.jetpack: JetPack | None = find_jetpack(root)
        self.rails = find_rails(root)
        self._root = root
        self._clock = clock
        self._gpu = find_gpu(root)
        self._thermal = find_thermal(root)
        self._lock = threading.Lock()
        self._reading: tuple[float, Reading] | None = None
        self._mode: tuple[float, PowerMode | None] | None = None

    def read(self) -> Reading:
        """Read the sensors, or return the last reading if it is less than a second old."""
        with self._lock:
            now = self._clock()
            if self._reading is None or now - self._reading[0] >= _FRESH_S:
                self._reading = now, self._read(now)
            return self._reading[1]

    def _read(self, now: float) -> Reading:
        if self._mode is None or now - self._mode[0] >= _MODE_FRESH_S:
            self._mode = now, find_power_mode(self._root)
        watts = self.rails.watts()
        sensors = bool(self._thermal.alerts or self.rails.rails)
        return Reading(
            power_mode=self._mode[1],
            gpu=self._gpu.read(),
            temperatures=self._thermal.temperatures(),
            watts=watts,
            total_watts=total_watts(watts),
            throttled_by=(*self._thermal.throttling(), *self.rails.overcurrent()) if sensors else None,
            overcurrent_events=self.rails.event_counts(),
        )


def find_jetson(root: Path = Path("/")) -> Jetson | None:
    """Return this machine, if it is a Jetson.

    Args:
        root: Folder that contains /etc, /proc, /sys and /var.
    """
    board = find_board(device_tree(root))
    return None if board is None else Jetson(board, root)
