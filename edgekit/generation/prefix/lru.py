"""Least-recently-used order with byte counts, in which both memory and disk evict blocks. Not thread-safe."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

__all__ = ["Lru"]

V = TypeVar("V")


class Lru(Generic[V]):
    """Values by key, least recently used first, with the sum of their sizes.

    Attributes:
        used: Bytes of all entries.
    """

    __slots__ = ("_entries", "used")

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[V, int]] = OrderedDict()
        self.used = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> V | None:
        """Return the value without touching it."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: bytes, value: V, size: int) -> None:
        """Add or replace an entry, as the most recently used."""
        self.remove(key)
        self._entries[key] = (value, size)
        self.used += size

    def remove(self, key: bytes) -> None:
        """Remove an entry, if present."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.used -= entry[1]

    def touch(self, chain: Sequence[bytes]) -> None:
        """Make a chain's blocks the most recently used, its first block last of all.

        A block is thus never more recent than the one before it, so the oldest entry is always the end of a chain: no
        block is evicted while a later one of its chain remains.
        """
        for key in reversed(chain):
            if key in self._entries:
                self._entries.move_to_end(key)

    def oldest(self) -> bytes | None:
        """Return the key of the entry to evict next."""
        return next(iter(self._entries), None)

    def keys(self) -> list[bytes]:
        """Return all keys, oldest first."""
        return list(self._entries)
