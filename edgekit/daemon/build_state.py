"""How far the TensorRT engine is that the daemon builds: what `/readyz`, the metrics and the MQTT status show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["PHASES", "BuildState", "Phase"]

Phase = Literal["waiting", "building", "loading"]

PHASES: tuple[Phase, ...] = get_args(Phase)

_SAID: dict[Phase, str] = {
    "waiting": "waiting for another process that builds a TensorRT engine",
    "building": "building the TensorRT engine",
    "loading": "loading the TensorRT engine",
}


@dataclass(frozen=True, slots=True)
class BuildState:
    """How far the engine is.

    Attributes:
        phase: What is being done.
        share: Finished share of the build, from 0 to 1.
    """

    phase: Phase
    share: float = 0.0

    @property
    def percent(self) -> int:
        """The share in percent, rounded down."""
        return int(100 * self.share)

    def __str__(self) -> str:
        """Such as "building the TensorRT engine, 37 %"."""
        return f"{_SAID[self.phase]}, {self.percent} %" if self.phase == "building" else _SAID[self.phase]
