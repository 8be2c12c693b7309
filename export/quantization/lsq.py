"""Data-free least squares: each group's scale and offset minimize the squared weight error.

The method is Lloyd's (Lloyd 1982, doi:10.1109/TIT.1982.1056489; Max 1960) for a uniform quantizer: assign each weight
to its nearest point, then move the grid to the least-squares line through (code, weight); no step increases the
error. Lloyd's method finds a local minimum, so it starts from several grids that clip the group's range by different
amounts, and the best result wins. ggml's k-quants search over clipped starts with a least-squares refit in the same
way (`make_qkx2_quants` in llama.cpp's ggml-quants.c); HQQ (Badri & Shaji 2023) alternates likewise under another norm,
and OmniQuant (Shao et al. 2023, arXiv:2308.13137) learns the clipping from data. No calibration data is used here.
docs/decisions/0021 lists extensions that did not help.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgekit.export.quantization.blocks import quantize_blocks, raise_non_finite, round_scales
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset

__all__ = ["best_lines", "lsq"]

FloatArray = npt.NDArray[np.float32]

# The fraction of a group's range that each starting grid spans, and the number of refinements of the best one. The
# less constrained the line, the less its start matters. Measured on Gaussian and heavy-tailed weights, against five
# starts: two leave 0.8 to 1.0 % more squared error with float offsets, three 0.2 to 0.5 % more without offsets and 1.4
# to 2.2 % more with zero points. Twice as many starts and three times the steps lower it by about another 1 %.
_FIVE = (1.04, 0.97, 0.9, 0.83, 0.76)
_STARTS = {Offset.FLOAT: (0.98, 0.88), Offset.SYMMETRIC: (1.0, 0.9, 0.8), Offset.ZERO_POINT: _FIVE}
_REFINE = 2


def lsq(weight: FloatArray, grid: Grid) -> GroupedTensor:
    """Quantize a matrix with least-squares scales and offsets.

    Args:
        weight: Float32 `[out, in]`.
        grid: The values that the target's format can represent.

    Raises:
        ExportError: The shape does not divide into groups, or a weight is not finite or too large.
    """
    starts = {4: _STARTS[grid.offset], 8: (1.0,)}
    return quantize_blocks(weight, grid, lambda block, grid: best_lines(block, grid, starts, _REFINE))


def best_lines(
    block: FloatArray,
    grid: Grid,
    starts: Mapping[int, tuple[float, ...]],
    refinements: int,
    weights: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Search for the scales and offsets of a block of groups.

    Args:
        block: Float32 `[groups, group_size]`, contiguous.
        grid: The values that the target's format can represent.
        starts: The fractions of a group's range that the starting grids span, by bits.
        refinements: Number of refinement steps of the best line.
        weights: Weights of the squared errors, see `fit_weighted_lines`; None weights all equally.

    Returns:
        Scales and offsets `[groups]`, as the format stores them.

    Raises:
        ExportError: A weight is not finite or too large.
    """
    from edgekit.export.quantization import kernels

    kind = {
        Offset.SYMMETRIC: kernels.SYMMETRIC,
        Offset.ZERO_POINT: kernels.ZERO_POINT,
        Offset.FLOAT: kernels.FLOAT,
    }[grid.offset]
    scales, offsets = np.empty(len(block), np.float32), np.empty(len(block), np.float32)
    spans = np.array(starts.get(grid.bits, (1.0,)), np.float32)
    if weights is None:
        finite = kernels.fit_lines(block, grid.bits, kind, spans, refinements, scales, offsets)
    else:
        finite = kernels.fit_weighted_lines(block, weights, grid.bits, kind, spans, refinements, scales, offsets)
    if not finite:
        raise_non_finite(block)
    return round_scales(scales, offsets, grid)
