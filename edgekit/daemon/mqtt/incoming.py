"""What a caller sent: its payload and the MQTT 5 properties that matter. It trusts none of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import paho.mqtt.client as paho

from edgekit.daemon.mqtt.messages import clean_id

__all__ = ["Incoming"]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request or a cancellation, unread.

    Attributes:
        response_topic: None from a caller that speaks MQTT 3.1.1, or sets none.
        correlation: Correlation Data; None likewise.
        expiry_s: What is left of the message's expiry interval; None likewise.
    """

    payload: bytes
    response_topic: str | None
    correlation: bytes | None
    expiry_s: float | None

    @classmethod
    def of(cls, message: paho.MQTTMessage) -> Incoming:
        """Take what is needed from paho's message."""
        properties = message.properties
        expiry = getattr(properties, "MessageExpiryInterval", None)
        return cls(
            bytes(message.payload),
            getattr(properties, "ResponseTopic", None),
            getattr(properties, "CorrelationData", None),
            None if expiry is None else float(expiry),
        )

    @property
    def implied_id(self) -> str | None:
        """An id for a request that has none but Correlation Data: its text, or a hash of it."""
        if not self.correlation:
            return None
        try:
            text = self.correlation.decode()
        except UnicodeDecodeError:
            text = ""
        return clean_id(text) or hashlib.sha256(self.correlation).hexdigest()
