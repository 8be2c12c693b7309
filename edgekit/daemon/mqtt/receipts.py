"""Acknowledges received messages in the order in which they came, as MQTT 5 asks for (section 4.6)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Receipt", "Receipts"]


@dataclass(slots=True)
class Receipt:
    """A received message that is not acknowledged yet.

    Attributes:
        mid: Packet identifier, valid on its connection only.
        handled: Whether the message need not be delivered again.
    """

    mid: int
    qos: int
    handled: bool = False


class Receipts:
    """The messages of one connection that are not acknowledged yet."""

    def __init__(self) -> None:
        self._open: deque[Receipt] = deque()

    def add(self, mid: int, qos: int) -> Receipt:
        """Record a message."""
        receipt = Receipt(mid, qos)
        self._open.append(receipt)
        return receipt

    def settle(self, receipt: Receipt, send: Callable[[int, int], object]) -> None:
        """Acknowledge a message, once those before it are; without effect after `clear`.

        Args:
            receipt: The message.
            send: Acknowledges one, by packet identifier and QoS.
        """
        receipt.handled = True
        while self._open and self._open[0].handled:
            first = self._open.popleft()
            send(first.mid, first.qos)

    def clear(self) -> None:
        """Forget all: the connection is over, and the broker delivers them again."""
        self._open.clear()
