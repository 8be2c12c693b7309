"""Decode steps that are ready to be repeated: one for each place that a batch of slots can have in the KV cache.

A graph holds what its execution contexts were when it was captured, and is only valid while they stay so (NVIDIA's
documentation of TensorRT, on CUDA graphs). So each step has contexts of its own, which are set up once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from edgekit.runners.cuda.stream import Graph
from edgekit.runners.tensorrt.session import Session

__all__ = ["DecodeStep", "DecodeSteps", "StepKey"]

_KEPT = 16


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


@dataclass(slots=True)
class DecodeStep:
    """A step.

    Attributes:
        session: Its execution contexts, with shapes and addresses set.
        graph: The captured step, once it is captured.
    """

    session: Session
    graph: Graph | None = None

    def close(self) -> None:
        """Release it; its work must have ended."""
        if self.graph is not None:
            self.graph.close()
        self.session.close()


class DecodeSteps:
    """The steps that were used last."""

    def __init__(self) -> None:
        self._steps: OrderedDict[StepKey, DecodeStep] = OrderedDict()

    def __len__(self) -> int:
        return len(self._steps)

    def get(self, key: StepKey) -> DecodeStep | None:
        """Return a step, if it is kept."""
        step = self._steps.get(key)
        if step is not None:
            self._steps.move_to_end(key)
        return step

    def add(self, key: StepKey, step: DecodeStep) -> None:
        """Keep a step; the one that was used least recently may go, and its work must have ended."""
        self._steps[key] = step
        if len(self._steps) > _KEPT:
            self._steps.popitem(last=False)[1].close()

    def close(self) -> None:
        """Release all steps."""
        while self._steps:
            self._steps.popitem()[1].close()
