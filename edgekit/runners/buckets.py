"""Length buckets of a sequence slot's KV cache, and a pool of positions that slots of such lengths share."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FIRST_BUCKET", "KvPool", "bucket_of"]

FIRST_BUCKET = 256
"""Positions of the smallest bucket; each next one is twice as long."""


def bucket_of(length: int, capacity: int) -> int:
    """Return the positions of the bucket for `length` tokens: less than twice as many, or `FIRST_BUCKET`.

    Args:
        length: Tokens to hold.
        capacity: Positions of the longest bucket, at least `length`.
    """
    bucket = FIRST_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, capacity)


@dataclass(frozen=True, slots=True)
class KvPool:
    """Positions of KV cache that all slots of a runner share; a slot takes those of its bucket.

    Attributes:
        positions: All of them.
        capacity: Positions of the longest bucket.
        bucketed: A slot takes its bucket; otherwise it takes `capacity`, however many tokens it holds.
        allocated: Their memory was allocated when the model was loaded.
    """

    positions: int
    capacity: int
    bucketed: bool = True
    allocated: bool = False

    def taken(self, tokens: int) -> int:
        """Return the positions that a slot of so many tokens takes."""
        if tokens <= 0:
            return 0
        return bucket_of(tokens, self.capacity) if self.bucketed else self.capacity

    def fitting(self, positions: int) -> int:
        """Return the most tokens that a slot can hold in so many positions."""
        bucket = self.taken(1)
        if bucket > positions:
            return 0
        while bucket < self.capacity and self.taken(bucket + 1) <= positions:
            bucket = self.taken(bucket + 1)
        return bucket
