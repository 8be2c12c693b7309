"""Readings of a daemon at work, for tests: a double of the engine worker, beside the real files of a Jetson."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgekit.daemon.readings import AnswerTotals, Readings
from edgekit.generation.engine.engine import EngineStats
from edgekit.jetson.device import find_jetson
from edgekit.jetson.energy import EnergyMeter
from tests.jetson.tree import write, write_nano

__all__ = ["WorkerDouble", "nano_readings", "plain_readings"]


@dataclass
class WorkerDouble:
    """An engine worker's state, as a test sets it."""

    running: int = 2
    waiting: int = 1
    accepting: bool = True
    failed: bool = False
    model: Any = field(
        default_factory=lambda: SimpleNamespace(runner=SimpleNamespace(limits=SimpleNamespace(sequence_slots=8)))
    )

    def stats(self) -> EngineStats:
        return EngineStats(self.running, self.waiting, 0, 0, 0, 0, None)


def nano_readings(root: Path, worker: WorkerDouble | None, totals: AnswerTotals | None = None) -> Readings:
    """On an Orin Nano that has taken 6 W for half an hour."""
    write_memory(write_nano(root))
    jetson = find_jetson(root)
    assert jetson is not None
    now = [0.0]
    meter = EnergyMeter(jetson.rails.total, clock=lambda: now[0])
    for second in range(0, 1801, 2):
        now[0] = float(second)
        meter.sample()
    return Readings(totals or AnswerTotals(), lambda: worker, jetson=jetson, meter=meter, root=root)


def plain_readings(root: Path, worker: WorkerDouble | None, totals: AnswerTotals | None = None) -> Readings:
    """On a machine that shows its memory, and has no sensors."""
    write_memory(root)
    return Readings(totals or AnswerTotals(), lambda: worker, root=root)


def write_memory(root: Path) -> None:
    write(root, "proc/self/statm", "200000 102400 3000 1 0 100 0")
    write(root, "proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 4194304 kB")
