"""Announces the device to Home Assistant, again when Home Assistant starts, and withdraws it when switched off."""

from __future__ import annotations

import json
import logging
import platform
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgekit.atomic_file import replace_file
from edgekit.config import MqttConfig
from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.discovery import Asking, DiscoveredDevice, discovery, discovery_topic
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.daemon.mqtt.topics import Topics, check_reply_topic, reply_roots
from edgekit.daemon.readings import Readings, Sensors
from edgekit.errors import RequestError

__all__ = ["HomeAssistant", "announced_topic", "asking_of", "withdrawal"]

_log = logging.getLogger(__name__)

JITTER_S = 2.0
"""All devices of a house hear Home Assistant's birth message at the same moment."""
GAP_S = 5.0
"""Least time between two announcements, however often Home Assistant starts."""


class HomeAssistant:
    """The announcements of one device.

    The topic of the last announcement is kept in a file, so that it is withdrawn when `mqtt.home_assistant` is switched
    off or the discovery prefix changes.

    Args:
        config: The configuration.
        topics: The device's topics.
        readings: Reads the sensors; one that has been seen keeps its entity.
        file: Keeps the topics that were announced; None keeps none.
        clock: Returns the time in seconds.

    Attributes:
        due: By the clock, when to announce the device again; None if it need not be.
    """

    def __init__(
        self,
        config: MqttConfig,
        topics: Topics,
        readings: Readings,
        file: Path | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._enabled = config.home_assistant
        self._prefix = config.home_assistant_prefix
        self._readings = readings
        self._file = file
        self._clock = clock
        self._last = clock() - GAP_S
        self._seen = Sensors()
        model = readings.board or f"{platform.system()} {platform.machine()}".strip()
        self._device = DiscoveredDevice(topics, model, self._seen, asking_of(config, topics))
        if self._enabled and self._device.asking is None:
            _log.warning(
                "mqtt: Home Assistant cannot ask this device "
                "(hint: set mqtt.home_assistant_user to its user name at the broker, and check mqtt.reply_prefixes)"
            )
        self.due: float | None = None

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The topic of Home Assistant's birth message."""
        return (f"{self._prefix}/status",) if self._enabled else ()

    def receive(self, topic: str, payload: bytes) -> bool:
        """Handle a message if it is Home Assistant's; returns whether it is."""
        if topic not in self.subscriptions:
            return False
        if payload == b"online" and self.due is None:
            now = self._clock()
            self.due = max(now + random.uniform(0, JITTER_S), self._last + GAP_S)  # noqa: S311  no secret
        return True

    def announcement(self) -> list[Outgoing]:
        """Return the discovery message, and the withdrawal of earlier ones; empty if there is nothing to say."""
        self.due = None
        self._last = self._clock()
        topic = discovery_topic(self._prefix, self._device)
        announced = self._announced()
        found = [withdrawal(old) for old in announced if not self._enabled or old != topic]
        if self._enabled:
            device = replace(self._device, sensors=self._sensors())
            payload = messages.encode(discovery(device))
            found.append(Outgoing(topic, payload, content_type=messages.CONTENT_TYPE, retain=True, durable=False))
        self._keep([topic] if self._enabled else [], before=announced)
        return found

    def _sensors(self) -> Sensors:
        """The last known values: a sensor that cannot be read now is still there."""
        now = self._readings.sensors()
        known = {name: value for name in Sensors.__dataclass_fields__ if (value := getattr(now, name)) is not None}
        self._seen = replace(self._seen, **known)
        return self._seen

    def _announced(self) -> list[str]:
        if self._file is None:
            return []
        try:
            topics = json.loads(self._file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return []
        valid = isinstance(topics, list) and all(isinstance(topic, str) and topic for topic in topics)
        return topics if valid else []

    def _keep(self, topics: list[str], *, before: list[str]) -> None:
        if self._file is None or topics == before:
            return
        try:
            replace_file(self._file, json.dumps(topics).encode("ascii"), mode=0o644)
        except OSError as error:
            _log.warning("mqtt: cannot keep what was announced to Home Assistant in %s: %s", self._file, error)


def asking_of(config: MqttConfig, topics: Topics) -> Asking | None:
    """Return how Home Assistant asks; None if it cannot: without its user name, or a reply topic that it may use.

    Args:
        config: The configuration.
        topics: The device's topics.
    """
    user = config.home_assistant_user
    if user is None and config.require_user:
        return None
    roots = reply_roots(user, config.reply_prefixes) or ("replies",)
    reply_to = f"{roots[0].rstrip('/')}/home-assistant/{topics.device}"
    try:
        check_reply_topic(reply_to, prefix=config.prefix, allowed=reply_roots(user, config.reply_prefixes))
    except RequestError:
        return None
    return Asking(topics.request if user is None else f"{topics.request}/{user}", reply_to)


def announced_topic(config: MqttConfig, device: str) -> str:
    """Return the topic on which a device is announced.

    Args:
        config: The configuration.
        device: The device's id.
    """
    named = DiscoveredDevice(Topics(config.prefix, device), "", Sensors(), None)
    return discovery_topic(config.home_assistant_prefix, named)


def withdrawal(topic: str) -> Outgoing:
    """Return the message that removes a device from Home Assistant, and its announcement from the broker."""
    return Outgoing(topic, b"", retain=True)
