"""How far the TensorRT engine is that the daemon builds: what `/readyz`, the metrics and the MQTT status show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from edgekit.generation.model import ModelInfo

__all__ = ["PHASES", "BuildState", "Phase", "with_reason"]

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


def with_reason(info: ModelInfo, reason: str, hint: str | None = None) -> ModelInfo:
    """Return a model's description with the reason why no engine runs it, if another runner does."""
    if not any(one.name == "tensorrt" for one in info.rejected):
        return info
    rejected = tuple(replace(one, reason=reason, hint=hint) if one.name == "tensorrt" else one for one in info.rejected)
    return replace(info, rejected=rejected)
