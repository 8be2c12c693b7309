"""Shares the energy of each step among the requests in it (docs/decisions/0030)."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.generation.engine.step_plan import ScheduledChunk
from edgekit.jetson.energy import EnergyMark, EnergyMeter

__all__ = ["StepEnergy"]


class StepEnergy:
    """Charges requests for the energy of their steps.

    Args:
        meter: Measures it; None charges nothing.
    """

    def __init__(self, meter: EnergyMeter | None) -> None:
        self._meter = meter
        self._charged: EnergyMark | None = None

    def begin(self) -> None:
        """Leave out what was used until now, while there was nothing to do."""
        if self._meter is not None:
            self._charged = self._meter.mark()

    def charge(self, planned: Sequence[ScheduledChunk]) -> None:
        """Share what was used since the last call among the requests of a step, by the tokens computed for each.

        Args:
            planned: The step, which the runner has just run.
        """
        if self._meter is None:
            return
        before, self._charged = self._charged, self._meter.mark()
        joules = None if before is None else self._charged.since(before)
        tokens = sum(len(one.chunk.tokens) for one in planned)
        for one in planned:
            share = None if joules is None else joules * len(one.chunk.tokens) / tokens
            one.sequence.state.add_energy(share, decoding=one.sequence.generated > 0)
