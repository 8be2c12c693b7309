"""Round to nearest: a group's grid spans from its smallest to its largest weight. The plain recipe."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.quantization.blocks import put_on_grid, refuse_infinite, store
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset

__all__ = ["rtn"]

FloatArray = npt.NDArray[np.float32]


def rtn(weight: FloatArray, grid: Grid) -> GroupedTensor:
    """Quantize a matrix by rounding each weight to the nearest point of an evenly spread grid.

    Args:
        weight: Float32 `[out, in]`.
        grid: What the target's format can hold.

    Raises:
        ExportError: The shape does not divide into groups, or a weight is not finite or too large.
    """
    return put_on_grid(weight, grid, _spread)


def _spread(block: FloatArray, grid: Grid) -> tuple[FloatArray, FloatArray]:
    from edgekit.export.quantization.kernels import group_ranges

    low, high = np.empty(len(block), np.float32), np.empty(len(block), np.float32)
    if not group_ranges(block, low, high):
        refuse_infinite(block)
    top = np.float32((1 << grid.bits) - 1)
    middle = np.float32(1 << (grid.bits - 1))
    if grid.offset is Offset.SYMMETRIC:
        # -2**(b-1) reaches one step further than 2**(b-1)-1; take the smaller scale that covers both ends.
        scales = np.maximum(-low / middle, high / (middle - 1))
        scales = np.maximum(scales, 0).astype(np.float32)
        return store(scales, -middle * scales, grid)
    if grid.offset is Offset.ZERO_POINT:
        # Zero must be a point of the grid.
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    # Divided first, so that the width of a huge range cannot overflow.
    return store(high / top - low / top, low, grid)
