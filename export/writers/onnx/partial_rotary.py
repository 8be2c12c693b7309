"""Partial RoPE for operators that rotate only full heads.

RoPE over `dim` elements pairs element i with i + dim/2. The product of a query and a key does not depend on the order
of elements if both have the same order, so the rotated pairs are distributed over the two halves of the head, and the
unrotated elements fill up both halves as pairs whose angle is always zero:

    rotated, first half │ rotated, second half │ rest
    rotated, first half │ half of the rest ║ rotated, second half │ the other half of the rest
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Decoder, Linear, Rope
from edgekit.export.quantization.float_rows import FloatRows
from edgekit.export.quantization.grid import GroupedTensor
from edgekit.export.writers.base import Weights
from edgekit.export.writers.onnx.rope import rope_tables

__all__ = ["FullRotaryWeights", "full_rotary_tables"]

FloatArray = npt.NDArray[np.float32]


class FullRotaryWeights:
    """`Weights` that reorder queries and keys for full rotation in layers with partial RoPE.

    Args:
        weights: The weights in the checkpoint's order.
        decoder: The model.
    """

    def __init__(self, weights: Weights, decoder: Decoder) -> None:
        self._w = weights
        self._orders: dict[str, npt.NDArray[np.int64]] = {}
        for layer in decoder.layers:
            if layer.rope.dim == decoder.head_dim:
                continue
            order = _order(layer.rope.dim, decoder.head_dim)
            for linear in (layer.q, layer.k):
                heads = np.arange(0, linear.out_features, decoder.head_dim)
                rows = (heads[:, None] + order).reshape(-1)
                self._orders |= {linear.weight: rows, linear.bias_name: rows}
            self._orders |= {norm: order for norm in (layer.q_norm, layer.k_norm) if norm is not None}

    @property
    def order(self) -> Sequence[Linear]:
        """See `Weights.order`."""
        return self._w.order

    def vector(self, name: str) -> FloatArray:
        """See `Weights.vector`."""
        values = self._w.vector(name)
        return values[self._orders[name]] if name in self._orders else values

    def matrix(self, linear: Linear) -> GroupedTensor | FloatArray:
        """See `Weights.matrix`."""
        matrix, order = self._w.matrix(linear), self._orders.get(linear.weight)
        if order is None:
            return matrix
        if not isinstance(matrix, GroupedTensor):
            return matrix[order]
        return GroupedTensor(matrix.codes[order], matrix.scales[order], matrix.offsets[order], matrix.bits)

    def table(self, linear: Linear) -> GroupedTensor | FloatRows:
        """See `Weights.table`; tables have no attention heads."""
        return self._w.table(linear)


def full_rotary_tables(rope: Rope, head_dim: int, positions: int) -> tuple[FloatArray, FloatArray]:
    """Return cosine and sine, float32 `[positions, head_dim / 2]`: 1 and 0 for the unrotated elements."""
    padding = ((0, 0), (0, (head_dim - rope.dim) // 2))
    cos, sin = rope_tables(rope, positions)
    return np.pad(cos, padding, constant_values=1), np.pad(sin, padding)


def _order(dim: int, head_dim: int) -> npt.NDArray[np.int64]:
    half, middle = dim // 2, (dim + head_dim) // 2
    return np.concatenate(
        [np.arange(0, half), np.arange(dim, middle), np.arange(half, dim), np.arange(middle, head_dim)]
    )
