"""Converts a quantized tensor to the target's grid without changing any value, where that is possible.

Checkpoints that are quantized already (GGUF, GPTQ, AWQ) are carried over this way: quantizing them again would add a
second error to the first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset

__all__ = ["convert_exactly"]

FloatArray = npt.NDArray[np.float32]


def convert_exactly(tensor: GroupedTensor, grid: Grid) -> GroupedTensor | None:
    """Convert a tensor to a grid without changing any dequantized value, if that is possible.

    Groups may be split (the scale is repeated), codes may have fewer bits than the grid's, and codes may be
    shifted together with their zero point. Groups are never merged.

    Args:
        tensor: The checkpoint's tensor.
        grid: The values that the target's format can represent.

    Returns:
        The tensor in the grid's group size, bits and stored precision, `tensor` itself if nothing has to change;
        or None if the grid cannot represent it.
    """
    if tensor.bits > grid.bits or tensor.group_size % grid.group_size:
        return None
    if not _representable(tensor.scales, grid):
        return None
    if grid.offset is Offset.FLOAT:
        return _split_groups(tensor, grid) if _representable(tensor.offsets, grid) else None

    highest = (1 << grid.bits) - 1
    filled = _fill_empty_groups(tensor, highest // 2 + 1 if grid.offset is Offset.SYMMETRIC else 0)
    if filled is None:
        return None
    zeros = np.rint(-filled.offsets / filled.scales)
    if not np.array_equal(-zeros * filled.scales, filled.offsets):
        return None
    if grid.offset is Offset.ZERO_POINT:
        return _split_groups(filled, grid) if zeros.min() >= 0 and zeros.max() <= highest else None
    centred = _centre(filled, zeros, highest)
    return None if centred is None else _split_groups(centred, grid)


def _fill_empty_groups(tensor: GroupedTensor, zero: int) -> GroupedTensor | None:
    """Give groups with a zero scale the scale one and this zero point; None if such a group is not all zero."""
    empty = tensor.scales == 0
    if not empty.any():
        return tensor
    if tensor.offsets[empty].any():
        return None
    codes = tensor.codes.copy()
    codes.reshape(*empty.shape, -1)[empty] = zero
    return GroupedTensor(
        codes=codes,
        scales=np.where(empty, np.float32(1), tensor.scales),
        offsets=np.where(empty, np.float32(-zero), tensor.offsets),
        bits=tensor.bits,
    )


def _centre(tensor: GroupedTensor, zeros: FloatArray, highest: int) -> GroupedTensor | None:
    """Shift the codes so that every zero point is the middle code; None if a code leaves `0..highest`."""
    if tensor.scales.min() <= 0:
        return None
    middle = np.float32(highest // 2 + 1)
    shifts = middle - zeros
    if not shifts.any():
        return tensor
    # A product of a code and a scale of at most 16 bits is exact in float32, and so is the sum: no value changes.
    if (tensor.scales.view(np.uint32) & 0xFF).any():
        return None
    grouped = tensor.codes.reshape(*shifts.shape, -1)
    if (grouped.min(axis=-1) + shifts).min() < 0 or (grouped.max(axis=-1) + shifts).max() > highest:
        return None
    # uint8 arithmetic wraps; the result is in range, as checked above.
    codes = grouped + shifts.astype(np.int64).astype(np.uint8)[:, :, None]
    return GroupedTensor(
        codes=codes.reshape(tensor.codes.shape), scales=tensor.scales, offsets=-middle * tensor.scales, bits=tensor.bits
    )


def _representable(values: FloatArray, grid: Grid) -> bool:
    """Whether the grid's scale type represents these values exactly."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(grid.scale_dtype).astype(np.float32), values))


def _split_groups(tensor: GroupedTensor, grid: Grid) -> GroupedTensor:
    parts = tensor.group_size // grid.group_size
    if parts == 1 and tensor.bits == grid.bits:
        return tensor
    return GroupedTensor(
        codes=tensor.codes,
        scales=np.repeat(tensor.scales, parts, axis=1),
        offsets=np.repeat(tensor.offsets, parts, axis=1),
        bits=grid.bits,
    )
