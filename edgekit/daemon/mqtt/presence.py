"""Presence: the device's retained status and its retained info message."""

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
    """Status and info message of one device.

    Every connection has its own session name. A Will Message carries the name of the connection that it was set on, so
    that a reader recognizes a late one; when the device itself receives it, it publishes `online` again (the idea of
    Sparkplug's bdSeq).

    Attributes:
        repair_due: `time.monotonic()` at which to publish the status again; None if the status is correct.
    """

    def __init__(self, topics: Topics, model: ModelInfo) -> None:
        self._topics = topics
        self._model = model
        self._boot = uuid.uuid4().hex[:12]
        self._connection = 0
        self._since = ""
        self.repair_due: float | None = None

    def begin(self) -> None:
        """Start a new session name, for the next connection."""
        self._connection += 1
        self._since = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")

    def online(self) -> Outgoing:
        """Return the birth message, which also serves as the repair."""
        self.repair_due = None
        return self._status("online")

    def offline(self) -> Outgoing:
        """Return the Will Message, which is also the last message before disconnecting."""
        return self._status("offline")

    def info(self, max_payload_bytes: int) -> Outgoing:
        """Return the info message: the model, and the topics for requests."""
        info = messages.info(
            device=self._topics.device,
            model=self._model.name,
            context_length=self._model.context_length,
            version=__version__,
            topics={name: getattr(self._topics, name) for name in ("request", "cancel", "status", "refused")},
            max_payload_bytes=max_payload_bytes,
        )
        return self._retained(self._topics.info, info)

    def on_status(self, payload: bytes) -> None:
        """Handle a message on the status topic; schedule a repair if it is not this connection's `online`."""
        if payload != self._status("online").payload and self.repair_due is None:
            self.repair_due = time.monotonic() + _REPAIR_S

    def _status(self, state: str) -> Outgoing:
        status = messages.status(
            state,
            session=f"{self._boot}-{self._connection}",
            since=self._since,
            model=self._model.name,
            runner=self._model.runner,
            rejected=self._model.rejected,
            version=__version__,
        )
        return self._retained(self._topics.status, status)

    def _retained(self, topic: str, message: dict[str, object]) -> Outgoing:
        return Outgoing(topic, messages.encode(message), content_type=messages.CONTENT_TYPE, retain=True, durable=False)
