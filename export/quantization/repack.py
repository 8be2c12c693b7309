"""The codes of a quantized checkpoint kept as they are, its scales and offsets rounded to the target's precision.

For formats whose scales are wider than the target's: GGUF's Q4_K multiplies a float16 by a 6-bit integer, MLX holds
a float16. The error is at most one part in 2048 of a scale and of an offset, far below that of quantizing again.
"""

from __future__ import annotations

import numpy as np

from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset

__all__ = ["repack"]


def repack(tensor: GroupedTensor, grid: Grid) -> GroupedTensor | None:
    """Round a tensor's scales and offsets to what the grid stores.

    Returns:
        The tensor with its codes unchanged; None if the grid is not of the same bits and group size, does not
        take any offset, or cannot represent a scale at all.
    """
    if grid.offset is not Offset.FLOAT or (tensor.bits, tensor.group_size) != (grid.bits, grid.group_size):
        return None
    with np.errstate(over="ignore"):
        scales = tensor.scales.astype(grid.scale_dtype).astype(np.float32)
        offsets = tensor.offsets.astype(grid.scale_dtype).astype(np.float32)
    if not (np.isfinite(scales).all() and np.isfinite(offsets).all()):
        return None
    return GroupedTensor(codes=tensor.codes, scales=scales, offsets=offsets, bits=tensor.bits)
