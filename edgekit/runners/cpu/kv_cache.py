"""KV cache memory in the layout of the kernels: float16, keys interleaved in tiles of 16 positions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.runners.kv_cache import KvCache

__all__ = ["TILE", "TiledKvCache"]

# As in csrc/kernels.h.
TILE = 16

HalfArray = npt.NDArray[np.float16]


class TiledKvCache(KvCache):
    """Two arrays per layer: keys `[slots, heads, tiles, head_dim, TILE]`, values `[slots, heads, capacity, head_dim]`.

    Args:
        layers: Number of layers.
        slots: Number of sequence slots.
        heads: Number of KV heads.
        positions: Minimum capacity of a slot.
        head_dim: Elements per head.
    """

    def __init__(self, layers: int, slots: int, *, heads: int, positions: int, head_dim: int) -> None:
        # Full tiles. The base class rounds up to a multiple of a power of two, which keeps this a multiple of TILE.
        positions = -(-positions // TILE) * TILE
        super().__init__(2 * layers, slots, heads=heads, positions=positions, head_dim=head_dim, dtype=np.float16)

    def of_layer(self, layer: int) -> tuple[HalfArray, HalfArray]:
        """Keys and values of a layer."""
        return self.arrays[2 * layer], self.arrays[2 * layer + 1]
