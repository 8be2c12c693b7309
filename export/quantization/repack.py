"""Keeps the codes of a quantized checkpoint and rounds its scales and offsets to the target's precision.

For formats with wider scales than the target's: GGUF's Q4_K multiplies a float16 by a 6-bit integer, MLX stores
a float16. The error is at most 1/2048 of a scale and of an offset, far less than quantizing again.
"""

from __future__ import annotations

import numpy as np

from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset

__all__ = ["repack"]


def repack(tensor: GroupedTensor, grid: Grid) -> GroupedTensor | None:
    """Round a tensor's scales and offsets to the grid's precision.

    Returns:
        The tensor with its codes unchanged; None if bits or group size differ, the grid has no float offsets, or a
        scale or offset is out of its range.
    """
    if grid.offset is not Offset.FLOAT or (tensor.bits, tensor.group_size) != (grid.bits, grid.group_size):
        return None
    with np.errstate(over="ignore"):
        scales = tensor.scales.astype(grid.scale_dtype).astype(np.float32)
        offsets = tensor.offsets.astype(grid.scale_dtype).astype(np.float32)
    if not (np.isfinite(scales).all() and np.isfinite(offsets).all()):
        return None
    return GroupedTensor(codes=tensor.codes, scales=scales, offsets=offsets, bits=tensor.bits)
