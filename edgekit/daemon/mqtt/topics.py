"""Topic names of one device, and which topics a caller may have answers sent to.

A response topic is hostile input: whoever may publish a request chooses where the daemon publishes next.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.errors import ConfigError, RequestError

__all__ = ["MAX_REPLY_TOPIC_BYTES", "Topics", "check_reply_topic", "default_device_id"]

MAX_REPLY_TOPIC_BYTES = 512
"""MQTT allows 65,535; nobody needs that, and every reply repeats the topic."""

_LEVEL = re.compile("[^+#$/\\s\u0000-\u001f\u007f-\u009f\ud800-\udfff]{1,64}")
# Control characters are forbidden in topics by MQTT 5 section 1.5.4, or at best a way to forge log lines;
# a lone surrogate cannot be sent at all.
_UNSENDABLE = re.compile("[\u0000-\u001f\u007f-\u009f\ud800-\udfff]")


def default_device_id() -> str:
    """The host's name, made fit for a topic level."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().split(".")[0]).strip("-_")
    return name[:64] or "device"


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one device.

    Attributes:
        prefix: First level or levels, `edgekit` by default.
        device: The device's name: one level.
    """

    prefix: str
    device: str

    def __post_init__(self) -> None:
        """Refuse names that would not be one plain topic level each."""
        if not _LEVEL.fullmatch(self.device):
            raise ConfigError(
                f"`mqtt.device_id` {self.device!r} cannot name a device in a topic",
                hint="use 1 to 64 characters other than `/`, `+`, `#`, `$` and spaces",
            )
        if not all(_LEVEL.fullmatch(level) for level in self.prefix.split("/")):
            raise ConfigError(
                f"`mqtt.prefix` {self.prefix!r} cannot begin a topic",
                hint="use levels without `+`, `#`, `$` and spaces, with one `/` between two of them",
            )

    @property
    def request(self) -> str:
        """Where chats are asked for."""
        return f"{self.prefix}/{self.device}/chat/request"

    @property
    def cancel(self) -> str:
        """Where a request is taken back."""
        return f"{self.prefix}/{self.device}/chat/cancel"

    @property
    def refused(self) -> str:
        """Where requests are noted that cannot be answered, for want of a response topic that may be used."""
        return f"{self.prefix}/{self.device}/chat/refused"

    @property
    def status(self) -> str:
        """Retained presence."""
        return f"{self.prefix}/{self.device}/status"

    @property
    def info(self) -> str:
        """Retained card: what this device serves and how to ask it."""
        return f"{self.prefix}/{self.device}/info"

    @property
    def client_id(self) -> str:
        """MQTT client id: one per device, so that a second daemon of the same name takes the first one's session."""
        return f"{self.prefix}-{self.device}".replace("/", "-")


def check_reply_topic(topic: object, *, prefix: str, allowed: Sequence[str] = ()) -> str:
    """Return `topic` if answers may be published there.

    Args:
        topic: What the caller gave.
        prefix: The daemon's own prefix; nothing at or below it is allowed, or a caller could have the daemon
            command other devices.
        allowed: If not empty, the topic must be one of these or lie below one of them, whole levels compared.

    Raises:
        RequestError: `reply_topic_refused`, with the reason.
    """
    if not isinstance(topic, str) or not topic:
        raise _refused("no response topic was given", "set the MQTT 5 Response Topic, or `reply_to` in the payload")
    if _UNSENDABLE.search(topic):
        raise _refused("the response topic holds a control character or broken Unicode", None)
    if len(topic.encode()) > MAX_REPLY_TOPIC_BYTES:
        raise _refused(f"the response topic is longer than {MAX_REPLY_TOPIC_BYTES} bytes", None)
    if "+" in topic or "#" in topic:
        raise _refused("the response topic holds a wildcard", "name one topic, without `+` and `#`")
    if topic.startswith("$"):
        raise _refused("the response topic begins with `$`, which belongs to the broker", None)
    if _below(topic, prefix):
        raise _refused(f"the response topic lies under `{prefix}/`, which belongs to the devices", None)
    if allowed and not any(_below(topic, root) for root in allowed):
        raise _refused(
            "the response topic lies outside the allowed prefixes",
            "use one of: " + ", ".join(f"{root.rstrip('/')}/…" for root in allowed),
        )
    return topic


def _below(topic: str, root: str) -> bool:
    root = root.rstrip("/")
    return topic == root or topic.startswith(root + "/")


def _refused(message: str, hint: str | None) -> RequestError:
    return RequestError(message, hint=hint, code="reply_topic_refused", param="reply_to")
