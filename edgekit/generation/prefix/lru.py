"""What was used least recently, in bytes: the order in which both the memory and the disk give up blocks.

It counts; it frees nothing and takes no lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

__all__ = ["Lru"]

V = TypeVar("V")


class Lru(Generic[V]):
    """Values by key, oldest first, with the sum of their sizes.

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
        """Return the value; its age stays as it is."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: bytes, value: V, size: int) -> None:
        """Add or replace an entry, as the youngest."""
        self.remove(key)
        self._entries[key] = (value, size)
        self.used += size

    def remove(self, key: bytes) -> None:
        """Take an entry out, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.used -= entry[1]

    def touch(self, chain: Sequence[bytes]) -> None:
        """Make the blocks of a chain the youngest, its first one youngest of all.

        A block is thereby never younger than the one before it, so that the oldest of all is always the end of a
        chain: nothing is given up while something that needs it stays.
        """
        for key in reversed(chain):
            if key in self._entries:
                self._entries.move_to_end(key)

    def oldest(self) -> bytes | None:
        """Return the key of the entry to give up first."""
        return next(iter(self._entries), None)

    def keys(self) -> list[bytes]:
        """Return all keys, oldest first."""
        return list(self._entries)
