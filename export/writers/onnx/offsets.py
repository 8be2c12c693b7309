"""Adds what an operator's own zero point cannot hold of a grid's offsets.

Over one group, `sum(x · (code · scale + offset))` is `sum(x · code · scale)` plus `offset` times the sum of x. The
first is the operator's; the second is one small float matrix `[groups, out]` for all groups. So any grid is held
exactly as it is, at 16 or 32 bits per group. It knows no dialect.
"""

from __future__ import annotations

import numpy as np

from edgekit.export.writers.onnx.graph import Graph

__all__ = ["OffsetTerms"]


class OffsetTerms:
    """Builds the second term; sums of one input are taken once for all matrices that read it."""

    def __init__(self, graph: Graph) -> None:
        self._g = graph
        self._sums: dict[tuple[str, int], str] = {}

    # x ─ Reshape [.., groups, size] ─ ReduceSum ─ MatMul offsets ─▶
    def term(self, x: str, offsets: str, groups: int, size: int, path: str) -> str:
        """Return the second term, of offsets that are a value `[groups, out]` in the dtype of `x`."""
        key = (x, size)
        if key not in self._sums:
            g, place = self._g, f"{x.removesuffix('/output_0')}/sums{size}"
            shape = g.constant(f"shape.groups.{groups}.{size}", np.array([0, 0, groups, size], np.int64))
            grouped = g.node("Reshape", [x, shape], f"{place}/Reshape")
            last = g.constant("axis.last", np.array([-1], np.int64))
            self._sums[key] = g.node("ReduceSum", [grouped, last], f"{place}/ReduceSum", keepdims=0)
        return self._g.node("MatMul", [self._sums[key], offsets], f"{path}/offsets/MatMul")
