"""A message to publish, with its MQTT 5 properties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

__all__ = ["Outgoing", "new_properties"]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish at QoS 1.

    Attributes:
        fallback: Sent instead if the packet exceeds the broker's Maximum Packet Size.
        durable: Sent again after a reconnect; false for presence, which belongs to one connection.
        on_no_subscribers: Called if the broker acknowledges with *No matching subscribers*.
        on_settled: Called once the message need not be sent again: the broker has acknowledged it, with whatever reason
            code, or it is given up. A message with it is not dropped because too much is queued.
    """

    topic: str
    payload: bytes
    correlation: bytes | None = None
    content_type: str | None = None
    retain: bool = False
    durable: bool = True
    fallback: Outgoing | None = None
    on_no_subscribers: Callable[[], None] | None = None
    on_settled: Callable[[], None] | None = field(default=None, compare=False)

    @property
    def packet_bytes(self) -> int:
        """Upper bound of the PUBLISH packet's size: topic, payload, properties, and 32 bytes of headers."""
        properties = len(self.correlation or b"") + len(self.content_type or "")
        return len(self.topic.encode()) + len(self.payload) + properties + 32

    def properties(self, *, will: bool = False) -> Properties:
        """The MQTT 5 properties, for PUBLISH or for a Will Message."""
        properties = new_properties(PacketTypes.WILLMESSAGE if will else PacketTypes.PUBLISH)
        if self.correlation is not None:
            properties.CorrelationData = self.correlation
        if self.content_type is not None:
            properties.ContentType = self.content_type
            properties.PayloadFormatIndicator = 1
        return properties


def new_properties(packet_type: int) -> Properties:
    """Return empty properties for a packet type."""
    return Properties(packet_type)  # type: ignore[no-untyped-call]  # unannotated in paho
