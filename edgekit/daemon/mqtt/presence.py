"""Presence: the device's retained status and its retained info message."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timezone

from edgekit import __version__
from edgekit.daemon.build_state import BuildState
from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.daemon.mqtt.topics import Topics
from edgekit.errors import RequestError
from edgekit.generation.model import ModelInfo

__all__ = ["Presence"]

_REPAIR_S = 1.0
REFRESH_S = 60.0
"""Interval of the status where it has a `device`, whose sensors change."""
_CHANGING = {"device", "engine", "runner", "rejected_runners"}


class Presence:
    """Status and info message of one device.

    Every connection has its own session name. A Will Message carries the name of the connection that it was set on, so
    that a reader recognizes a late one; when the device itself receives it, it publishes `online` again (the idea of
    Sparkplug's bdSeq).

    Args:
        topics: The device's topics.
        model: The served model.
        device: Returns the board and its sensors, which the status then has too; called for every `online`.
        engine: Returns how far the engine is that the daemon builds; None if it builds none.

    Attributes:
        publish_due: `time.monotonic()` at which to publish the status again; None if the status is correct and does
            not change.
    """

    def __init__(
        self,
        topics: Topics,
        model: ModelInfo,
        device: Callable[[], Mapping[str, object]] | None = None,
        engine: Callable[[], BuildState | None] = lambda: None,
    ) -> None:
        self._topics = topics
        self._model = model
        self._device = device
        self._engine = engine
        self._boot = uuid.uuid4().hex[:12]
        self._connection = 0
        self._since = ""
        self.publish_due: float | None = None

    @property
    def session(self) -> str:
        """The session name of the current connection."""
        return f"{self._boot}-{self._connection}"

    def describe(self, model: ModelInfo) -> None:
        """Have the next messages describe the model so."""
        self._model = model

    def begin(self) -> None:
        """Start a new session name, for the next connection."""
        self._connection += 1
        self._since = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")

    def online(self) -> Outgoing:
        """Return the birth message, which also serves as the repair and has fresh readings of the sensors."""
        self.publish_due = None if self._device is None else time.monotonic() + REFRESH_S
        status = self._status("online", self._device and self._device(), self._engine())
        return self._retained(self._topics.status, status)

    def offline(self) -> Outgoing:
        """Return the Will Message, which is also the last message before disconnecting."""
        return self._retained(self._topics.status, self._status("offline"))

    def info(self, max_payload_bytes: int, *, user_required: bool = False) -> Outgoing:
        """Return the info message: the model, and the topics for requests."""
        info = messages.info(
            device=self._topics.device,
            model=self._model.name,
            context_length=self._model.context_length,
            version=__version__,
            topics={name: getattr(self._topics, name) for name in ("request", "cancel", "status", "state", "refused")},
            max_payload_bytes=max_payload_bytes,
            user_required=user_required,
        )
        return self._retained(self._topics.info, info)

    def on_status(self, payload: bytes) -> None:
        """Handle a message on the status topic; schedule a repair if it is not this connection's `online`."""
        try:
            # Of two of ours, the older one may arrive after the newer one was made: what changes differs.
            published = _lasting(messages.read_object(payload))
        except RequestError:
            published = {}
        if published != _lasting(self._status("online")):
            repair = time.monotonic() + _REPAIR_S
            self.publish_due = repair if self.publish_due is None else min(self.publish_due, repair)

    def _status(
        self, state: str, device: Mapping[str, object] | None = None, engine: BuildState | None = None
    ) -> dict[str, object]:
        return messages.status(
            state,
            session=self.session,
            since=self._since,
            model=self._model.name,
            runner=self._model.runner,
            rejected=self._model.rejected,
            version=__version__,
            device=device,
            engine=engine,
        )

    def _retained(self, topic: str, message: dict[str, object]) -> Outgoing:
        return Outgoing(topic, messages.encode(message), content_type=messages.CONTENT_TYPE, retain=True, durable=False)


def _lasting(status: Mapping[str, object]) -> dict[str, object]:
    """What of a status changes only with the connection."""
    return {name: value for name, value in status.items() if name not in _CHANGING}
