"""KV cache as the kernels want it: float16, keys in tiles of 16 positions. What it gives and takes is in rows."""

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

    def read(self, slot: int, start: int, stop: int) -> bytes:
        """Positions `start:stop`, as `[arrays, heads, positions, head_dim]`."""
        first, last = start // TILE, -(-stop // TILE)
        parts = []
        for index, array in enumerate(self.arrays):
            if index % 2:
                parts += [head[start:stop].data for head in array[slot]]
                continue
            tiles = self._tiles(array, slot)[:, first:last]
            rows = tiles.swapaxes(2, 3).reshape(len(tiles), -1, tiles.shape[2])
            parts += [np.ascontiguousarray(head[start - first * TILE : stop - first * TILE]).data for head in rows]
        return b"".join(parts)

    def write(self, slot: int, start: int, count: int, data: memoryview) -> None:
        """Put `count` positions, as `read` gave them, at `start`."""
        _, heads, _, head_dim = self.arrays[0].shape
        given = np.frombuffer(data, np.float16).reshape(len(self.arrays), heads, count, head_dim)
        positions = np.arange(start, start + count)
        for index, (array, rows) in enumerate(zip(self.arrays, given, strict=True)):
            if index % 2:
                array[slot, :, start : start + count] = rows
            else:
                self._tiles(array, slot)[:, positions // TILE, :, positions % TILE] = rows.swapaxes(0, 1)

    def _tiles(self, array: HalfArray, slot: int) -> HalfArray:
        _, heads, capacity, head_dim = array.shape
        tiles: HalfArray = array[slot].reshape(heads, capacity // TILE, head_dim, TILE)
        return tiles
