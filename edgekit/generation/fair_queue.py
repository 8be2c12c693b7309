"""Which request is next: priority first, then each client its share.

Clients share by the tokens they ask for, not by the number of their requests (start-time fair queueing; Goyal, Vin and
Cheng, SIGCOMM 1996): who has asked for much waits behind who has asked for little, and nobody waits for ever. Requests
of one client keep their order. It knows no model and no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T")

# Clients that have not asked for long are forgotten when more than this are known.
_MOST_CLIENTS = 1024


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    rank: tuple[int, float, int]
    item: T


class FairQueue(Generic[T]):
    """The waiting requests."""

    def __init__(self) -> None:
        self._entries: list[_Entry[T]] = []
        # Each client's next request starts, in virtual time, where its last one ended.
        self._ends: dict[str, float] = {}
        self._now = 0.0
        self._count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        """In the order in which they would be served now."""
        return (entry.item for entry in sorted(self._entries, key=lambda entry: entry.rank))

    def push(self, item: T, *, client: str, cost: float, priority: int = 0) -> None:
        """Queue a request.

        Args:
            item: The request.
            client: Who asks.
            cost: What it will take, in tokens, say.
            priority: The smallest is served first.
        """
        start = max(self._now, self._ends.get(client, 0.0))
        self._ends[client] = start + cost
        self._count += 1
        self._entries.append(_Entry((priority, start, self._count), item))
        if len(self._ends) > _MOST_CLIENTS:
            self._ends = {name: end for name, end in self._ends.items() if end > self._now}

    def peek(self) -> T | None:
        """The next request; None if none waits."""
        return min(self._entries, key=lambda entry: entry.rank).item if self._entries else None

    def pop(self) -> T:
        """Take the next request.

        Raises:
            IndexError: None waits.
        """
        if not self._entries:
            raise IndexError("the queue is empty")
        entry = min(self._entries, key=lambda entry: entry.rank)
        self._entries.remove(entry)
        self._now = max(self._now, entry.rank[1])
        return entry.item

    def remove(self, item: T) -> None:
        """Take a request out, wherever it stands; it has had its share of nothing.

        Raises:
            ValueError: It does not wait.
        """
        for entry in self._entries:
            if entry.item is item:
                self._entries.remove(entry)
                return
        raise ValueError("not in the queue")
