"""KV cache whose slots are laid out for their length bucket, so that a graph of fixed capacity reads little padding.

The `native` graph attends to all positions of the cache that it is given. A slot therefore has the head stride of the
smallest bucket that holds it, and is laid anew when it outgrows that.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from edgekit.runners.buckets import bucket_of
from edgekit.runners.kv_cache import KvCache

__all__ = ["BucketedKvCache"]


class BucketedKvCache(KvCache):
    """A `KvCache` that is read and written through `views`, not through `arrays`; arguments as for `KvCache`."""

    def __init__(
        self, count: int, slots: int, *, heads: int, positions: int, head_dim: int, dtype: npt.DTypeLike
    ) -> None:
        super().__init__(count, slots, heads=heads, positions=positions, head_dim=head_dim, dtype=dtype)
        self._strides = [bucket_of(0, self.capacity)] * slots

    def stride(self, slot: int) -> int:
        """Return the positions from one head of the slot to the next."""
        return self._strides[slot]

    def views(self, slot: int) -> list[npt.NDArray[Any]]:
        """Return the slot's part of each array, contiguous, `[heads, bucket, head_dim]`; valid until `reserve`."""
        return self._laid_out(slot, self._strides[slot])

    def reserve(self, slot: int, length: int, positions: int) -> None:
        """Make room for `positions` tokens, of which the slot holds `length`."""
        stride = bucket_of(positions, self.capacity)
        if stride <= self._strides[slot]:
            return
        for old, new in zip(self.views(slot), self._laid_out(slot, stride), strict=True):
            # They overlap, so the rows are copied first.
            new[:, :length] = old[:, :length].copy()
        self._strides[slot] = stride

    def release(self, slot: int) -> None:
        """Return a slot's memory to the system; its contents are lost."""
        super().release(slot)
        self._strides[slot] = bucket_of(0, self.capacity)

    def write(self, slot: int, start: int, count: int, data: memoryview) -> None:
        """Write `count` positions, in the layout of `read`, behind the `start` ones that the slot holds."""
        self.reserve(slot, start, start + count)
        super().write(slot, start, count, data)

    def _laid_out(self, slot: int, stride: int) -> list[npt.NDArray[Any]]:
        heads, head_dim = self._heads
        used = heads * stride * head_dim
        return [array[slot].reshape(-1)[:used].reshape(heads, stride, head_dim) for array in self.arrays]
