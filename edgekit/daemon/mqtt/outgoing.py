"""A message on its way to the broker. It knows neither what it says nor the connection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

__all__ = ["Outgoing", "new_properties"]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish at QoS 1.

    Attributes:
        fallback: Sent instead if the broker does not take packets of this size.
        lasting: Kept and sent again after a reconnect; presence is not, for it belongs to one connection.
        on_unheard: Called when the broker says that nobody is subscribed to the topic.
    """

    topic: str
    payload: bytes
    correlation: bytes | None = None
    content_type: str | None = None
    retain: bool = False
    lasting: bool = True
    fallback: Outgoing | None = None
    on_unheard: Callable[[], None] | None = None

    @property
    def packet_bytes(self) -> int:
        """An upper bound of the PUBLISH packet's size: topic, payload, properties, and 32 bytes of headers."""
        properties = len(self.correlation or b"") + len(self.content_type or "")
        return len(self.topic.encode()) + len(self.payload) + properties + 32

    def properties(self, *, will: bool = False) -> Properties:
        """The MQTT 5 properties, as a message's or as a will's."""
        properties = new_properties(PacketTypes.WILLMESSAGE if will else PacketTypes.PUBLISH)
        if self.correlation is not None:
            properties.CorrelationData = self.correlation
        if self.content_type is not None:
            properties.ContentType = self.content_type
            properties.PayloadFormatIndicator = 1
        return properties


def new_properties(packet_type: int) -> Properties:
    """Return properties of a packet type, none set."""
    return Properties(packet_type)  # type: ignore[no-untyped-call]  # paho left its constructor unannotated
