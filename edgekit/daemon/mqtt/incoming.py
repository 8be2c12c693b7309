"""A received message: its payload and the MQTT 5 properties that a request uses, none of them validated yet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import paho.mqtt.client as paho

from edgekit.daemon.mqtt.messages import clean_id

__all__ = ["Incoming"]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request or a cancellation, not parsed yet.

    Attributes:
        response_topic: Response Topic; None if not set, as by an MQTT 3.1.1 caller.
        correlation: Correlation Data; None if not set.
        expiry_s: Remaining Message Expiry Interval in seconds; None if not set.
        again: It was delivered before.
        delivery: Number of the delivery: a repeated one has the same.
        user: The user's name in the topic, which the broker's access list binds; None if it has none.
    """

    payload: bytes
    response_topic: str | None
    correlation: bytes | None
    expiry_s: float | None
    again: bool = False
    delivery: int = 0
    user: str | None = None

    @classmethod
    def of(cls, message: paho.MQTTMessage, user: str | None = None) -> Incoming:
        """Convert paho's message, of this user."""
        properties = message.properties
        expiry = getattr(properties, "MessageExpiryInterval", None)
        return cls(
            bytes(message.payload),
            getattr(properties, "ResponseTopic", None),
            getattr(properties, "CorrelationData", None),
            None if expiry is None else float(expiry),
            bool(message.dup),
            message.mid,
            user,
        )

    @property
    def implied_id(self) -> str | None:
        """The id of a request without `id`: its Correlation Data as a string, or their hash; None without them."""
        if not self.correlation:
            return None
        try:
            text = self.correlation.decode()
        except UnicodeDecodeError:
            text = ""
        return clean_id(text) or hashlib.sha256(self.correlation).hexdigest()
