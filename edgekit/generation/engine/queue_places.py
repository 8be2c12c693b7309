"""Places for open requests: a client with many must leave some to others."""

from __future__ import annotations

__all__ = ["QueuePlaces"]

# One in so many places is for clients that have less than their part of all.
_RESERVED = 8


class QueuePlaces:
    """Counts the open requests of each client."""

    def __init__(self) -> None:
        # Open requests and share, of clients that have any.
        self._clients: dict[str, tuple[int, float]] = {}

    def of(self, client: str) -> int:
        """Return the number of a client's open requests."""
        return self._clients.get(client, (0, 0.0))[0]

    def limit(self, client: str, share: float, places: int) -> int:
        """Return how many requests may be open, of all clients together, for a further one of this client.

        Args:
            client: The client.
            share: Its weight in the fair queue.
            places: Number of places.
        """
        # One more client, that has none yet, counts with a share of 1.
        shares = 1.0 + share + sum(other for name, (_, other) in self._clients.items() if name != client)
        below = self.of(client) < places * share / shares
        return places if below else places - places // _RESERVED

    def take(self, client: str, share: float) -> None:
        """Count a request."""
        self._clients[client] = (self.of(client) + 1, share)

    def give_back(self, client: str) -> None:
        """Take back what was counted."""
        count, share = self._clients[client]
        if count > 1:
            self._clients[client] = (count - 1, share)
        else:
            del self._clients[client]
