"""Round to nearest (RTN): each group's grid spans from its smallest to its largest weight."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.quantization.blocks import quantize_blocks, raise_non_finite, round_scales
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset

__all__ = ["rtn"]

FloatArray = npt.NDArray[np.float32]


def rtn(weight: FloatArray, grid: Grid) -> GroupedTensor:
    """Quantize a matrix by rounding each weight to the nearest point of a uniform grid over its group's range.

    Args:
        weight: Float32 `[out, in]`.
        grid: The values that the target's format can represent.

    Raises:
        ExportError: The shape does not divide into groups, or a weight is not finite or too large.
    """
    return quantize_blocks(weight, grid, _full_range)


def _full_range(block: FloatArray, grid: Grid) -> tuple[FloatArray, FloatArray]:
    from edgekit.export.quantization.kernels import group_ranges

    low, high = np.empty(len(block), np.float32), np.empty(len(block), np.float32)
    if not group_ranges(block, low, high):
        raise_non_finite(block)
    top = np.float32((1 << grid.bits) - 1)
    middle = np.float32(1 << (grid.bits - 1))
    if grid.offset is Offset.SYMMETRIC:
        # -2**(b-1) reaches one step further than 2**(b-1)-1; take the smallest scale that covers both ends.
        scales = np.maximum(-low / middle, high / (middle - 1))
        scales = np.maximum(scales, 0).astype(np.float32)
        return round_scales(scales, -middle * scales, grid)
    if grid.offset is Offset.ZERO_POINT:
        # The grid must contain zero.
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    # Divided before subtracting, so that a huge range cannot overflow.
    return round_scales(high / top - low / top, low, grid)
