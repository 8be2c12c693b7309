"""Queue of waiting requests: by priority, then fair between clients.

Clients share by requested tokens, not by number of requests (start-time fair queueing; Goyal, Vin and Cheng, SIGCOMM
1996): a client that has requested many tokens waits behind one that has requested few, and no client starves. A client
may have a larger share than others. Requests of one client stay in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T")

# Above this number, clients without recent requests are forgotten.
_MAX_CLIENTS = 1024


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    rank: tuple[int, float, int]
    item: T


class FairQueue(Generic[T]):
    """The waiting requests."""

    def __init__(self) -> None:
        self._entries: list[_Entry[T]] = []
        # A client's next request starts, in virtual time, where its last one ended.
        self._ends: dict[str, float] = {}
        self._now = 0.0
        self._count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        """Iterate in the current service order."""
        return (entry.item for entry in sorted(self._entries, key=lambda entry: entry.rank))

    def push(self, item: T, *, client: str, cost: float, priority: int = 0, share: float = 1.0) -> None:
        """Queue a request.

        Args:
            item: The request.
            client: The client that it counts against.
            cost: Its expected cost, for example in tokens.
            priority: Smaller numbers are served first.
            share: The client's weight: its cost counts divided by it.
        """
        start = max(self._now, self._ends.get(client, 0.0))
        self._ends[client] = start + cost / share
        self._count += 1
        self._entries.append(_Entry((priority, start, self._count), item))
        if len(self._ends) > _MAX_CLIENTS:
            self._ends = {name: end for name, end in self._ends.items() if end > self._now}

    def peek(self) -> T | None:
        """Return the next request without removing it; None if the queue is empty."""
        return min(self._entries, key=lambda entry: entry.rank).item if self._entries else None

    def pop(self) -> T:
        """Remove and return the next request.

        Raises:
            IndexError: The queue is empty.
        """
        if not self._entries:
            raise IndexError("the queue is empty")
        entry = min(self._entries, key=lambda entry: entry.rank)
        self._entries.remove(entry)
        self._now = max(self._now, entry.rank[1])
        return entry.item

    def remove(self, item: T) -> None:
        """Remove a request at any position; its client is not credited.

        Raises:
            ValueError: It is not in the queue.
        """
        for entry in self._entries:
            if entry.item is item:
                self._entries.remove(entry)
                return
        raise ValueError("not in the queue")
