"""Which sizes the kernels can compute with: csrc/ checks nothing."""

from __future__ import annotations

from edgekit.runners.cpu.model import ModelDescription
from edgekit.runners.cpu.tiles import TILE
from edgekit.runners.cpu.wiring import Unsupported

__all__ = ["check_sizes"]

# Beyond, products of sizes, or of 8-bit codes along a group, do not fit 32 bits.
_MOST, _MOST_GROUP = 1 << 24, 1 << 15
# place() of csrc/model.c has room for.
_MOST_HEAD_DIM = 1024


def check_sizes(model: ModelDescription) -> None:
    """Refuse what the kernels would compute wrongly, or beyond the end of a buffer.

    Raises:
        Unsupported: The model has such a size.
    """
    widths = [("hidden", model.hidden, _MOST), ("intermediate", model.intermediate, _MOST)]
    widths += [("head", model.head_dim, _MOST_HEAD_DIM)]
    widths += [("group", matrix.group_size, _MOST_GROUP) for matrix in model.matrices()]
    for name, width, most in widths:
        if width % TILE or width > most:
            raise Unsupported(f"the kernels cannot run this model: its {name} size is {width}")
    largest = max(model.context_length, *(size for matrix in model.matrices() for size in matrix.shape))
    if largest > _MOST:
        raise Unsupported(f"the kernels cannot run this model: it has a size of {largest}")
