"""Least squares weighted by the importance of each input feature.

An output's error is the sum of the weight errors times the inputs, so a weight's squared error is weighted by the mean
square of its input. AWQ (Lin et al. 2023, arXiv:2306.00978) shows that the inputs determine which weights are salient;
llama.cpp's importance matrix weights its fits in the same way. The search is that of `lsq` with weighted sums.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.quantization.blocks import quantize_blocks
from edgekit.export.quantization.grid import Grid, GroupedTensor
from edgekit.export.quantization.lsq import best_lines

__all__ = ["fit_group", "weighted_lsq"]

FloatArray = npt.NDArray[np.float32]

# The fraction of a group's range that each starting grid spans, and the number of refinements of the best one.
_STARTS = {4: (1.04, 0.97, 0.9, 0.83, 0.76, 0.69), 8: (1.0, 0.95)}
_REFINE = 3
# A small uniform share, so that inputs that were never active keep sensible weights.
_UNIFORM = 0.001


def weighted_lsq(weight: FloatArray, grid: Grid, importance: FloatArray) -> GroupedTensor:
    """Quantize a matrix with scales and offsets that minimize the weighted squared error.

    Args:
        weight: Float32 `[out, in]`.
        grid: The values that the target's format can represent.
        importance: Float32 `[in]`, not negative: the weight of a squared error at an input, such as its mean square.

    Raises:
        ExportError: Shapes or groups do not match, or a weight is not finite or too large.
    """
    width = weight.shape[1]
    if width % grid.group_size or importance.shape != (width,):
        raise ExportError(
            f"{width} inputs, importance of shape {importance.shape} and groups of {grid.group_size} do not match"
        )
    weights = _weights(importance, grid.group_size)
    return quantize_blocks(weight, grid, lambda block, grid: best_lines(block, grid, _STARTS, _REFINE, weights))


def fit_group(block: FloatArray, importance: FloatArray, grid: Grid) -> tuple[FloatArray, FloatArray]:
    """Choose the scales and offsets of one group of inputs for all rows of a matrix.

    Args:
        block: Float32 `[group_size, out]`.
        importance: Float32 `[group_size]`, not negative.
        grid: The values that the target's format can represent.

    Returns:
        Scales and offsets `[out]`, as the format stores them.

    Raises:
        ExportError: A weight is not finite or too large.
    """
    rows = np.ascontiguousarray(block.T, dtype=np.float32)
    return best_lines(rows, grid, _STARTS, _REFINE, _weights(importance, grid.group_size))


def _weights(importance: FloatArray, group_size: int) -> FloatArray:
    """Importance by group, `[groups, group_size]`, each group normalized to sum one."""
    grouped = importance.reshape(-1, group_size).astype(np.float64)
    totals = grouped.sum(axis=1, keepdims=True)
    uniform = np.full_like(grouped, 1 / group_size)
    shares = np.divide(grouped, totals, out=uniform.copy(), where=totals > 0)
    return np.asarray((1 - _UNIFORM) * shares + _UNIFORM * uniform, np.float32)
