"""Least squares with a weight per input feature: the scales and offsets that matter most are fitted best.

The error of an output is the sum of the weights' errors times the inputs, so the squared error of a weight counts as
much as the mean square of its input does. AWQ (Lin et al. 2023, arXiv:2306.00978) shows that the inputs decide which
weights are salient; llama.cpp's importance matrix weighs its fits in the same way. The search is that of `lsq`, every
sum weighted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.quantization.blocks import put_on_grid
from edgekit.export.quantization.grid import Grid, GroupedTensor
from edgekit.export.quantization.lsq import best_lines

__all__ = ["fit_group", "weighted_lsq"]

FloatArray = npt.NDArray[np.float32]

# How much of a group's range a starting grid spans, and how often the best one is refined.
_STARTS = {4: (1.04, 0.97, 0.9, 0.83, 0.76, 0.69), 8: (1.0, 0.95)}
_REFINE = 3
# A trace of the plain fit, so that inputs that were never active keep sensible weights.
_PLAIN = 0.001


def weighted_lsq(weight: FloatArray, grid: Grid, importance: FloatArray) -> GroupedTensor:
    """Quantize a matrix with scales and offsets that are best under weighted squares.

    Args:
        weight: Float32 `[out, in]`.
        grid: What the target's format can hold.
        importance: Float32 `[in]`, not negative: how much a squared error at an input counts, its mean square say.

    Raises:
        ExportError: The shapes do not fit each other or the groups, or a weight is not finite or too large.
    """
    width = weight.shape[1]
    if width % grid.group_size or importance.shape != (width,):
        raise ExportError(f"{width} inputs, {importance.shape} importances and groups of {grid.group_size} do not fit")
    weights = _weights(importance, grid.group_size)
    return put_on_grid(weight, grid, lambda block, grid: best_lines(block, grid, _STARTS, _REFINE, weights))


def fit_group(block: FloatArray, importance: FloatArray, grid: Grid) -> tuple[FloatArray, FloatArray]:
    """Choose the scales and offsets of one group of inputs for all rows of a matrix.

    Args:
        block: Float32 `[group_size, out]`.
        importance: Float32 `[group_size]`, not negative.
        grid: What the target's format can hold.

    Returns:
        Scales and offsets `[out]`, as the format stores them.

    Raises:
        ExportError: A weight is not finite or too large.
    """
    rows = np.ascontiguousarray(block.T, dtype=np.float32)
    return best_lines(rows, grid, _STARTS, _REFINE, _weights(importance, grid.group_size))


def _weights(importance: FloatArray, group_size: int) -> FloatArray:
    """Importances by group, `[groups, group_size]`, so that each group's sum is one."""
    grouped = importance.reshape(-1, group_size).astype(np.float64)
    totals = grouped.sum(axis=1, keepdims=True)
    plain = np.full_like(grouped, 1 / group_size)
    shares = np.divide(grouped, totals, out=plain.copy(), where=totals > 0)
    return np.asarray((1 - _PLAIN) * shares + _PLAIN * plain, np.float32)
