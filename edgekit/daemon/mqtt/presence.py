"""What a device says of itself: its retained status and its retained card. It knows neither requests nor sockets."""

from __future__ import annotations

import time
import uuid
from datetime import datetime, timezone

from edgekit import __version__
from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.daemon.mqtt.topics import Topics
from edgekit.generation.model import ModelInfo

__all__ = ["Presence"]

_REPAIR_S = 1.0


class Presence:
    """Status and card of one device.

    Every connection has a session name of its own. A will carries the name of the connection that it was left
    with, so a reader can tell a late will from news; and the device itself, when it hears one, says again that it
    is online (the idea of Sparkplug's bdSeq).

    Attributes:
        repair_due: `time.monotonic()` at which the status is to be published again; None if it is right.
    """

    def __init__(self, topics: Topics, model: ModelInfo) -> None:
        self._topics = topics
        self._model = model
        self._boot = uuid.uuid4().hex[:12]
        self._connection = 0
        self._since = ""
        self.repair_due: float | None = None

    def begin(self) -> None:
        """Take a new session name, for the connection about to be made."""
        self._connection += 1
        self._since = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")

    def online(self) -> Outgoing:
        """The birth message; publishing it is a repair, too."""
        self.repair_due = None
        return self._status("online")

    def offline(self) -> Outgoing:
        """The will, or the last word before leaving."""
        return self._status("offline")

    def card(self, max_payload_bytes: int) -> Outgoing:
        """What is served here and how to ask."""
        card = messages.info(
            device=self._topics.device,
            model=self._model.name,
            context_length=self._model.context_length,
            version=__version__,
            topics={name: getattr(self._topics, name) for name in ("request", "cancel", "status", "refused")},
            max_payload_bytes=max_payload_bytes,
        )
        return self._retained(self._topics.info, card)

    def heard(self, payload: bytes) -> None:
        """Note what the status topic says, and plan a repair if it is not what this connection said."""
        if payload != self._status("online").payload and self.repair_due is None:
            self.repair_due = time.monotonic() + _REPAIR_S

    def _status(self, state: str) -> Outgoing:
        status = messages.status(
            state,
            session=f"{self._boot}-{self._connection}",
            since=self._since,
            model=self._model.name,
            version=__version__,
        )
        return self._retained(self._topics.status, status)

    def _retained(self, topic: str, message: dict[str, object]) -> Outgoing:
        return Outgoing(topic, messages.encode(message), content_type=messages.CONTENT_TYPE, retain=True, lasting=False)
