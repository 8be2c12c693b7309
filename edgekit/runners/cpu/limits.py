"""Checks that a model's sizes are within what the kernels can compute: csrc/ itself checks nothing."""

from __future__ import annotations

from edgekit.runners.cpu.kv_cache import TILE
from edgekit.runners.cpu.model import ModelDescription
from edgekit.runners.cpu.onnx_reader.matcher import Unsupported

__all__ = ["check_limits"]

# Above these, products of sizes, or sums of 8-bit products along a group, would overflow 32 bits.
_MAX_SIZE, _MAX_GROUP = 1 << 24, 1 << 15
# rope_and_store() of csrc/attention.h has a buffer of this size.
_MAX_HEAD_DIM = 1024


def check_limits(model: ModelDescription) -> None:
    """Reject sizes for which the kernels would compute wrong results or run past the end of a buffer.

    Raises:
        Unsupported: The model has such a size.
    """
    widths = [("hidden", model.hidden, _MAX_SIZE), ("intermediate", model.intermediate, _MAX_SIZE)]
    widths += [("head", model.head_dim, _MAX_HEAD_DIM)]
    widths += [("group", matrix.group_size, _MAX_GROUP) for matrix in model.matrices()]
    for name, width, limit in widths:
        if width % TILE or width > limit:
            raise Unsupported(f"the kernels cannot run this model: its {name} size is {width}")
    largest = max(model.context_length, *(size for matrix in model.matrices() for size in matrix.shape))
    if largest > _MAX_SIZE:
        raise Unsupported(f"the kernels cannot run this model: it has a size of {largest}")
