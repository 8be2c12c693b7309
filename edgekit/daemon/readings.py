"""What the daemon reads of itself and of its machine: load, answers, memory and sensors."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from edgekit.generation.engine.engine import EngineStats
from edgekit.generation.model import TextModel
from edgekit.generation.usage import Timings, Usage
from edgekit.jetson.device import Jetson
from edgekit.jetson.energy import EnergyMeter
from edgekit.jetson.thermal import find_thermal
from edgekit.machine import available_bytes

__all__ = ["ANSWERING", "AnswerTotals", "Answering", "Load", "Readings", "Sensors", "Worker"]

Answering = Literal["loading", "ready", "failed"]

ANSWERING: tuple[Answering, ...] = ("loading", "ready", "failed")

_MIB = 1 << 20
_JOULES_PER_WH = 3600.0


class Worker(Protocol):
    """The part of the engine worker that is read."""

    @property
    def model(self) -> TextModel:
        """The model that it runs."""

    @property
    def accepting(self) -> bool:
        """Whether it accepts requests."""

    @property
    def failed(self) -> bool:
        """Whether the process must be restarted."""

    def stats(self) -> EngineStats:
        """Return the engine's statistics."""


class AnswerTotals:
    """Counts the answers that have ended; any thread may call its methods.

    Attributes:
        completion_tokens: Tokens of all answers since the daemon started.
        decode_tokens_per_s: Decode speed of the last answer that has one; None before.
    """

    def __init__(self) -> None:
        self.completion_tokens = 0
        self.decode_tokens_per_s: float | None = None
        self._lock = threading.Lock()

    def add(self, usage: Usage, timings: Timings) -> None:
        """Count an answer."""
        rate = timings.as_rates(usage).get("decode_tokens_per_s")
        with self._lock:
            self.completion_tokens += usage.completion_tokens
            if rate is not None:
                self.decode_tokens_per_s = rate


@dataclass(frozen=True, slots=True)
class Load:
    """What the daemon is doing.

    Attributes:
        state: `loading` until the model answers; `failed` if the process must be restarted.
        running: Sequences that have a slot.
        waiting: Requests, and sequences, that wait for a slot.
        slots: Sequence slots; 0 while the model is loading.
        completion_tokens: Tokens of all answers since the daemon started.
        decode_tokens_per_s: Decode speed of the last answer; None before the first.
    """

    state: Answering
    running: int = 0
    waiting: int = 0
    slots: int = 0
    completion_tokens: int = 0
    decode_tokens_per_s: float | None = None

    @property
    def credits(self) -> int:
        """Requests that it should be given now: one for each free slot, and one that waits, so that no slot is idle."""
        return max(0, self.slots + 1 - self.running - self.waiting) if self.state == "ready" else 0

    @property
    def share(self) -> float:
        """Used share of the slots, 0 to 1."""
        return self.running / self.slots if self.slots else 0.0


@dataclass(frozen=True, slots=True)
class Sensors:
    """Memory and sensors; None is unknown, or not measured on this machine.

    Attributes:
        memory_mib: Resident memory of the daemon, in MiB.
        memory_available_mib: Memory that it could still allocate, in MiB.
        temperature_c: The hottest thermal zone, in °C.
        power_w: Power of the board, in watts.
        energy_wh: Energy of the board since the daemon started, in watt-hours.
    """

    memory_mib: float | None = None
    memory_available_mib: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    energy_wh: float | None = None


class Readings:
    """Reads load and sensors; any thread may call its methods, and neither raises.

    Args:
        totals: The answers that have ended.
        worker: Returns the engine worker; None until the model is loaded.
        jetson: The board; None on another machine.
        meter: Its energy meter; None if it has no sensor for that.
        root: Folder that contains /proc and /sys.
    """

    def __init__(
        self,
        totals: AnswerTotals,
        worker: Callable[[], Worker | None],
        *,
        jetson: Jetson | None = None,
        meter: EnergyMeter | None = None,
        root: Path = Path("/"),
    ) -> None:
        self._totals = totals
        self._worker = worker
        self._jetson = jetson
        self._meter = meter
        self._root = root
        self._thermal = find_thermal(root)

    @property
    def board(self) -> str | None:
        """The board's name; None if it is not a known one."""
        return None if self._jetson is None else str(self._jetson.board)

    def load(self) -> Load:
        """Return the load; takes microseconds."""
        totals, worker = self._totals, self._worker()
        if worker is None:
            return Load("loading", completion_tokens=totals.completion_tokens)
        stats = worker.stats()
        return Load(
            "failed" if worker.failed else "ready",
            running=stats.running,
            waiting=stats.waiting,
            slots=worker.model.runner.limits.sequence_slots if worker.accepting else 0,
            completion_tokens=totals.completion_tokens,
            decode_tokens_per_s=totals.decode_tokens_per_s,
        )

    def sensors(self) -> Sensors:
        """Read memory and sensors: some files, and on a Jetson the registers of its power monitors."""
        available = available_bytes(self._root)
        temperatures = self._thermal.temperatures()
        watts = None if self._jetson is None else self._jetson.rails.total()
        mark = None if self._meter is None else self._meter.mark()
        return Sensors(
            memory_mib=_mib(_resident_bytes(self._root)),
            memory_available_mib=_mib(available),
            temperature_c=max(temperatures.values(), default=None),
            power_w=None if watts is None else round(watts, 3),
            energy_wh=None if mark is None or mark.joules is None else round(mark.joules / _JOULES_PER_WH, 3),
        )


def _mib(size: int | None) -> float | None:
    return None if size is None else round(size / _MIB, 1)


def _resident_bytes(root: Path) -> int | None:
    """The second number of `statm`: pages in memory."""
    try:
        return int((root / "proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
