"""Captured decode steps: one for each place that a batch of slots can have, which changes with its length bucket."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from edgekit.runners.cuda.stream import Graph

__all__ = ["CapturedSteps", "StepKey"]

_KEPT = 32
"""Each takes about a megabyte for seven hundred kernels."""


@dataclass(frozen=True, slots=True)
class StepKey:
    """What the kernels of a decode step have as constants.

    Attributes:
        offset: Of the first slot in the KV cache, in positions.
        stride: Positions of each slot.
        batch: Number of slots, side by side.
    """

    offset: int
    stride: int
    batch: int


class CapturedSteps:
    """The most recently used graphs."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[StepKey, Graph] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, key: StepKey) -> Graph | None:
        """Return the graph of a step, if it was captured."""
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
        return graph

    def add(self, key: StepKey, graph: Graph) -> None:
        """Keep a graph; the one that was used least recently may go."""
        self._graphs[key] = graph
        if len(self._graphs) > _KEPT:
            self._graphs.popitem(last=False)[1].close()

    def close(self) -> None:
        """Release all graphs; their work must have ended."""
        while self._graphs:
            self._graphs.popitem()[1].close()
