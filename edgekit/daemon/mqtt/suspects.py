"""Finds the message that ends every connection on which it is sent, so that it is not sent for ever.

A broker may refuse a message without having announced why: mosquitto acknowledges one above its `message_size_limit`
with a reason code that MQTT does not allow there, and paho then hangs up. Whatever was in flight is suspected; suspects
are sent one at a time, so that only the one at fault is lost again and again.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.daemon.mqtt.outgoing import Outgoing

__all__ = ["MAX_LOSSES", "Suspects"]

MAX_LOSSES = 3
"""Connections in a row that may break on a message before it is given up."""

_LIMIT_VALID_S = 600.0


class Suspects:
    """Counts, for each message, the connections that broke while it was unacknowledged.

    A presence message is made anew for every connection: it is recognized by its topic. Any other is recognized by its
    `id`, which a later message may get: so every message that is not sent again must be forgotten.
    """

    def __init__(self) -> None:
        self._losses: dict[int | str, int] = {}
        self._largest_taken = 0
        self._size_limit = 0
        self._limit_until = 0.0

    def __len__(self) -> int:
        return len(self._losses)

    def suspected(self, message: Outgoing) -> bool:
        """Whether a connection broke while the message was unacknowledged."""
        return _name(message) in self._losses

    def forget(self, message: Outgoing) -> None:
        """Clear a message that is not sent again."""
        self._losses.pop(_name(message), None)

    def acknowledged(self, message: Outgoing, *, taken: bool) -> None:
        """Clear a message that the broker has taken, or refused in proper form."""
        self.forget(message)
        if taken:
            self._largest_taken = max(self._largest_taken, message.packet_bytes)

    def lost(self, messages: Sequence[Outgoing], now: float) -> set[int]:
        """Count a broken connection.

        Args:
            messages: Those in flight, which are blamed.
            now: `time.monotonic()`.

        Returns:
            The `id` of those to give up.
        """
        refused = set()
        for message in messages:
            name = _name(message)
            self._losses[name] = self._losses.get(name, 0) + 1
            if self._losses[name] < MAX_LOSSES:
                continue
            del self._losses[name]
            refused.add(id(message))
            if message.packet_bytes > self._largest_taken:
                # Probably its size, so that the next one of this size need not break three connections too.
                self._size_limit = message.packet_bytes - 1
                self._limit_until = now + _LIMIT_VALID_S
        return refused

    def size_limit(self, now: float) -> int:
        """Return the size in bytes that the broker seems to take at most; 0 if nothing indicates one."""
        return self._size_limit if now < self._limit_until else 0


def _name(message: Outgoing) -> int | str:
    return id(message) if message.durable else message.topic
