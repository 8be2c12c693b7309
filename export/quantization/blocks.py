"""Quantizes a matrix block by block with any method of choosing scales and offsets.

A block is small enough to still be in the CPU cache when its codes are computed. Nothing here starts a thread:
callers parallelize over matrices or rows (the kernels release the GIL).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset

__all__ = ["ChooseScales", "quantize_blocks", "raise_non_finite", "round_scales"]

FloatArray = npt.NDArray[np.float32]

ChooseScales = Callable[[FloatArray, Grid], tuple[FloatArray, FloatArray]]
"""`(block [groups, group_size], grid) -> scales, offsets [groups]`, both rounded by `round_scales`.

A block consists of consecutive full rows of the matrix.
"""

# Weights per block: 2 MiB of float32, or one row.
_BLOCK = 1 << 19


def quantize_blocks(weight: FloatArray, grid: Grid, choose: ChooseScales) -> GroupedTensor:
    """Quantize a matrix with the scales and offsets that `choose` returns for each block.

    Args:
        weight: Float32 `[out, in]`, all finite.
        grid: The values that the target's format can represent.
        choose: The method.

    Returns:
        The codes nearest to the weights, given the *stored* (rounded) scales and offsets: `dequantize()` is what
        the target computes.

    Raises:
        ExportError: The shape does not divide into groups, a weight is not finite, or the weights are too
            large for the grid's scale type.
    """
    if weight.ndim != 2:
        raise ExportError(f"only a matrix can be quantized, not an array shaped {weight.shape}")
    out, width = weight.shape
    if width == 0 or width % grid.group_size:
        raise ExportError(
            f"{width} input features do not divide into groups of {grid.group_size}",
            hint="choose a smaller group size, or leave this tensor in floating point",
        )
    from edgekit.export.quantization.kernels import nearest_codes

    # No copy if the matrix is contiguous float32, which is what the readers return.
    rows = np.ascontiguousarray(weight, dtype=np.float32).reshape(-1, grid.group_size)
    codes = np.empty(rows.shape, dtype=np.uint8)
    scales = np.empty(rows.shape[0], dtype=np.float32)
    offsets = np.empty(rows.shape[0], dtype=np.float32)
    groups = width // grid.group_size
    step = max(1, _BLOCK // width) * groups
    for start in range(0, rows.shape[0], step):
        span = slice(start, start + step)
        # The kernels are compiled for writable arrays; those of a mapped file are read-only.
        block = rows[span] if rows.flags.writeable else rows[span].copy()
        scales[span], offsets[span] = choose(block, grid)
        nearest_codes(block, grid.bits, scales[span], offsets[span], codes[span])
    return GroupedTensor(
        codes=codes.reshape(out, width),
        scales=scales.reshape(out, groups),
        offsets=offsets.reshape(out, groups),
        bits=grid.bits,
    )


def round_scales(scales: FloatArray, offsets: FloatArray, grid: Grid) -> tuple[FloatArray, FloatArray]:
    """Round scales and offsets to the values the format stores.

    Args:
        scales: Float32 `[groups]`, not negative. Zero, or a scale too small to store, becomes the smallest storable
            one: no kernel then divides by zero, and TensorRT's parser accepts it (it requires all scales > 0).
        offsets: Float32 `[groups]`. If the format has zero points, each is replaced by the nearest zero point's offset.
        grid: The values that the format can represent.

    Raises:
        ExportError: One is too large for the grid's scale type.
    """
    from edgekit.export.quantization.float16 import round_to_float16

    def rounded(values: FloatArray) -> tuple[FloatArray, bool]:
        if grid.scale_dtype is np.float32:
            return values, bool(np.isfinite(values).all())
        result = np.empty(values.shape, np.float32)
        finite: bool = round_to_float16(np.ascontiguousarray(values, np.float32), result)
        return result, finite

    stored_scales, finite = rounded(scales)
    stored_scales = np.maximum(stored_scales, np.float32(np.finfo(grid.scale_dtype).smallest_subnormal))
    # An overflow to infinity is reported below.
    with np.errstate(over="ignore", invalid="ignore"):
        if grid.offset is Offset.FLOAT:
            stored_offsets, finite_offsets = rounded(offsets)
            finite = finite and finite_offsets
        elif grid.offset is Offset.ZERO_POINT:
            stored_offsets = -np.clip(np.rint(-offsets / stored_scales), 0, (1 << grid.bits) - 1) * stored_scales
        else:
            stored_offsets = np.float32(-(1 << (grid.bits - 1))) * stored_scales
    if not (finite and np.isfinite(stored_offsets).all()):
        largest, name = float(np.abs(offsets).max()), np.dtype(grid.scale_dtype).name
        raise ExportError(
            f"weights up to {largest:.3g} are too large for {name} scales",
            hint="is the checkpoint damaged? Weights of an intact model stay far below 1000",
        )
    return stored_scales, stored_offsets


def raise_non_finite(block: FloatArray) -> NoReturn:
    """Report whether the non-finite weight that a kernel found in a block is NaN or infinite.

    Raises:
        ExportError: Always.
    """
    kind = "NaN" if np.isnan(block).any() else "infinite"
    raise ExportError(f"a weight is {kind}", hint="the checkpoint is damaged: download it again")
