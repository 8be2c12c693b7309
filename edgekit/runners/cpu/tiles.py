"""Memory for the KV cache as the kernels want it: float16, keys in tiles of 16 positions; they alone look inside."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.runners.kv_cache import KvCache

__all__ = ["TILE", "TiledKvCache"]

# Of csrc/kernels.h.
TILE = 16

HalfArray = npt.NDArray[np.float16]


class TiledKvCache(KvCache):
    """Two arrays for each layer.

    Keys are `[slots, heads, tiles, head_dim, TILE]`, values `[slots, heads, capacity, head_dim]`.

    Args:
        layers: How many.
        slots: Sequence slots.
        heads: KV heads.
        positions: Of a slot, at least.
        head_dim: Elements of a head.
    """

    def __init__(self, layers: int, slots: int, *, heads: int, positions: int, head_dim: int) -> None:
        # Whole tiles: as the capacity is rounded up by powers of two, it stays a multiple.
        positions = -(-positions // TILE) * TILE
        super().__init__(2 * layers, slots, heads=heads, positions=positions, head_dim=head_dim, dtype=np.float16)

    def of_layer(self, layer: int) -> tuple[HalfArray, HalfArray]:
        """Keys and values of a layer."""
        return self.arrays[2 * layer], self.arrays[2 * layer + 1]
