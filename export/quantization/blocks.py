"""What all recipes share: a matrix as a list of groups, and the last step of putting groups on a grid.

Groups are taken a block at a time, so that a block is still in the cache when its codes are chosen. Nothing here
starts a thread: whoever has several matrices, or rows of one, calls from several (the kernels release the lock).
It knows no method of choosing a scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset

__all__ = ["Choose", "put_on_grid", "refuse_infinite", "store"]

FloatArray = npt.NDArray[np.float32]

Choose = Callable[[FloatArray, Grid], tuple[FloatArray, FloatArray]]
"""`(block [groups, group_size], grid) -> scales, offsets [groups]`, both as `store` leaves them.

A block is some whole rows of the matrix, one after the other.
"""

# Weights in one block: 2 MiB of float32, or one row.
_BLOCK = 1 << 19


def put_on_grid(weight: FloatArray, grid: Grid, choose: Choose) -> GroupedTensor:
    """Quantize a matrix with scales and offsets that `choose` finds for each block.

    Args:
        weight: Float32 `[out, in]`, all finite.
        grid: What the target's format can hold.
        choose: The method.

    Returns:
        Codes nearest to the weights, given the *stored* (rounded) scales and offsets: `dequantize()` is what
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

    # Without a copy where the matrix is contiguous float32, as readers give it.
    rows = np.ascontiguousarray(weight, dtype=np.float32).reshape(-1, grid.group_size)
    codes = np.empty(rows.shape, dtype=np.uint8)
    scales = np.empty(rows.shape[0], dtype=np.float32)
    offsets = np.empty(rows.shape[0], dtype=np.float32)
    groups = width // grid.group_size
    step = max(1, _BLOCK // width) * groups
    for start in range(0, rows.shape[0], step):
        span = slice(start, start + step)
        # The kernels are compiled for arrays that may be written to; a mapped file's may not.
        block = rows[span] if rows.flags.writeable else rows[span].copy()
        scales[span], offsets[span] = choose(block, grid)
        nearest_codes(block, grid.bits, scales[span], offsets[span], codes[span])
    return GroupedTensor(
        codes=codes.reshape(out, width),
        scales=scales.reshape(out, groups),
        offsets=offsets.reshape(out, groups),
        bits=grid.bits,
    )


def store(scales: FloatArray, offsets: FloatArray, grid: Grid) -> tuple[FloatArray, FloatArray]:
    """Round scales and offsets to what the format stores.

    Args:
        scales: Float32 `[groups]`, not negative. Zero, or too small to store, becomes the smallest that can be
            stored: no kernel then divides by zero, and TensorRT's parser accepts it (it wants all scales > 0).
        offsets: Float32 `[groups]`. Where the format has a zero point, the nearest one replaces the offset.
        grid: What the format can hold.

    Raises:
        ExportError: One is too large for the grid's scale type.
    """
    from edgekit.export.halves import round_to_halves

    def rounded(values: FloatArray) -> tuple[FloatArray, bool]:
        if grid.scale_dtype is np.float32:
            return values, bool(np.isfinite(values).all())
        kept = np.empty(values.shape, np.float32)
        finite: bool = round_to_halves(np.ascontiguousarray(values, np.float32), kept)
        return kept, finite

    stored, finite = rounded(scales)
    stored = np.maximum(stored, np.float32(np.finfo(grid.scale_dtype).smallest_subnormal))
    # An infinity made here is refused below.
    with np.errstate(over="ignore", invalid="ignore"):
        if grid.offset is Offset.FLOAT:
            kept, finite_too = rounded(offsets)
            finite = finite and finite_too
        elif grid.offset is Offset.ZERO_POINT:
            kept = -np.clip(np.rint(-offsets / stored), 0, (1 << grid.bits) - 1) * stored
        else:
            kept = np.float32(-(1 << (grid.bits - 1))) * stored
    if not (finite and np.isfinite(kept).all()):
        largest, name = float(np.abs(offsets).max()), np.dtype(grid.scale_dtype).name
        raise ExportError(
            f"weights up to {largest:.3g} are too large for {name} scales",
            hint="is the checkpoint damaged? Weights of a sound model stay far below 1000",
        )
    return stored, kept


def refuse_infinite(block: FloatArray) -> NoReturn:
    """Say what is wrong with a block that a kernel found a weight in that is not finite.

    Raises:
        ExportError: Always.
    """
    kind = "NaN" if np.isnan(block).any() else "infinite"
    raise ExportError(f"a weight is {kind}", hint="the checkpoint is damaged: fetch it again")
