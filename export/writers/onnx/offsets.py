"""Adds the residual offsets that an operator's zero points cannot represent.

Over one group, `sum(x · (code · scale + offset))` is `sum(x · code · scale)` plus `offset` times the sum of x. The
operator computes the first term; the second is a product with one small float matrix `[groups, out]`. So any grid is
represented exactly, at 16 or 32 bits per group.
"""

from __future__ import annotations

import numpy as np

from edgekit.export.writers.onnx.graph import Graph

__all__ = ["OffsetTerms"]


class OffsetTerms:
    """Builds the second term; the group sums of an input are computed once for all matrices that read it."""

    def __init__(self, graph: Graph) -> None:
        self._g = graph
        self._sums: dict[tuple[str, int], str] = {}

    # x ─ Reshape [.., groups, size] ─ ReduceSum ─ MatMul offsets ─▶
    def term(self, x: str, offsets: str, groups: int, size: int, path: str) -> str:
        """Return the second term; `offsets` is a value `[groups, out]` in the dtype of `x`."""
        key = (x, size)
        if key not in self._sums:
            g, sums_path = self._g, f"{x.removesuffix('/output_0')}/sums{size}"
            shape = g.constant(f"shape.groups.{groups}.{size}", np.array([0, 0, groups, size], np.int64))
            grouped = g.node("Reshape", [x, shape], f"{sums_path}/Reshape")
            last = g.constant("axis.last", np.array([-1], np.int64))
            self._sums[key] = g.node("ReduceSum", [grouped, last], f"{sums_path}/ReduceSum", keepdims=0)
        return self._g.node("MatMul", [self._sums[key], offsets], f"{path}/offsets/MatMul")
