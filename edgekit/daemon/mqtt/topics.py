"""Topic names of a device, and validation of response topics.

A response topic is hostile input: with it a caller chooses where the daemon publishes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.errors import ConfigError, RequestError

__all__ = ["MAX_REPLY_TOPIC_BYTES", "USER_REPLIES", "Topics", "check_reply_topic", "reply_roots"]

USER_REPLIES = "replies"
"""Users' replies are below `replies/USER` if `mqtt.reply_prefixes` is empty."""

MAX_REPLY_TOPIC_BYTES = 512
"""MQTT allows 65,535, but every reply repeats the topic."""

_LEVEL = re.compile("[^+#$/\\s\u0000-\u001f\u007f-\u009f\ud800-\udfff]{1,64}")
# MQTT 5 section 1.5.4 forbids or discourages control characters, which can also forge log lines; a lone surrogate
# cannot be encoded.
_UNSENDABLE = re.compile("[\u0000-\u001f\u007f-\u009f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one device.

    Attributes:
        prefix: First level or levels, `edgekit` by default.
        device: The device's id: one level.
    """

    prefix: str
    device: str

    def __post_init__(self) -> None:
        """Reject names that are not valid topic levels."""
        if not _LEVEL.fullmatch(self.device):
            raise ConfigError(
                f"`mqtt.device_id` {self.device!r} is not a valid topic level",
                hint="use 1 to 64 characters other than `/`, `+`, `#`, `$` and spaces",
            )
        if not all(_LEVEL.fullmatch(level) for level in self.prefix.split("/")):
            raise ConfigError(
                f"`mqtt.prefix` {self.prefix!r} is not a valid topic prefix",
                hint="use topic levels without `+`, `#`, `$` and spaces, separated by single `/`",
            )

    @property
    def request(self) -> str:
        """Topic for requests."""
        return f"{self.prefix}/{self.device}/chat/request"

    @property
    def cancel(self) -> str:
        """Topic for cancellations."""
        return f"{self.prefix}/{self.device}/chat/cancel"

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The topics to subscribe to: requests and cancellations, without and with a user's name, and the status."""
        return (self.request, f"{self.request}/+", self.cancel, f"{self.cancel}/+", self.status)

    def user_of(self, topic: str) -> str | None:
        """Return the user's name in a topic for requests or cancellations; None if it has none.

        Raises:
            RequestError: The name is empty or contains a space or a control character.
        """
        for base in (self.request, self.cancel):
            if topic.startswith(f"{base}/"):
                user = topic[len(base) + 1 :]
                if not _LEVEL.fullmatch(user):
                    raise RequestError(
                        "the user's name in the topic is not valid",
                        hint="use 1 to 64 characters other than `/`, `+`, `#`, `$` and spaces",
                        code="invalid_user",
                    )
                return user
        return None

    @property
    def refused(self) -> str:
        """Topic for reports of requests that cannot be answered, because their response topic is not allowed."""
        return f"{self.prefix}/{self.device}/chat/refused"

    @property
    def status(self) -> str:
        """Topic of the retained presence message."""
        return f"{self.prefix}/{self.device}/status"

    @property
    def state(self) -> str:
        """Topic of the retained state: load, memory and sensors."""
        return f"{self.prefix}/{self.device}/state"

    @property
    def info(self) -> str:
        """Topic of the retained info message."""
        return f"{self.prefix}/{self.device}/info"

    @property
    def client_id(self) -> str:
        """MQTT client identifier; a second daemon with the same device id takes over the first one's session."""
        return f"{self.prefix}-{self.device}".replace("/", "-")


def reply_roots(user: str | None, allowed: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes that response topics may have; empty for any.

    Args:
        user: The user; its replies are below its own name. None without one.
        allowed: `mqtt.reply_prefixes`.
    """
    if user is None:
        return tuple(allowed)
    return tuple(f"{root.rstrip('/')}/{user}" for root in allowed or (USER_REPLIES,))


def check_reply_topic(topic: object, *, prefix: str, allowed: Sequence[str] = ()) -> str:
    """Return `topic` if replies may be published there.

    Args:
        topic: The caller's response topic.
        prefix: The daemon's own prefix. Topics at or below it are refused; otherwise a caller could make the daemon
            send requests to other devices.
        allowed: If not empty, the topic must equal one of these or be below it, by whole levels.

    Raises:
        RequestError: `reply_topic_refused`, with the reason.
    """
    if not isinstance(topic, str) or not topic:
        raise _refused("the response topic is missing", "set the MQTT 5 Response Topic, or `reply_to` in the payload")
    if _UNSENDABLE.search(topic):
        raise _refused("the response topic contains a control character or a lone surrogate", None)
    if len(topic.encode()) > MAX_REPLY_TOPIC_BYTES:
        raise _refused(f"the response topic is longer than {MAX_REPLY_TOPIC_BYTES} bytes", None)
    if "+" in topic or "#" in topic:
        raise _refused("the response topic contains a wildcard", "use a topic without `+` and `#`")
    if topic.startswith("$"):
        raise _refused("the response topic begins with `$`, which is reserved for the broker", None)
    if _below(topic, prefix):
        raise _refused(f"the response topic is under `{prefix}/`, which is reserved for the devices", None)
    if allowed and not any(_below(topic, root) for root in allowed):
        raise _refused(
            "the response topic is outside the allowed prefixes",
            "use one of: " + ", ".join(f"{root.rstrip('/')}/…" for root in allowed),
        )
    return topic


def _below(topic: str, root: str) -> bool:
    root = root.rstrip("/")
    return topic == root or topic.startswith(root + "/")


def _refused(message: str, hint: str | None) -> RequestError:
    return RequestError(message, hint=hint, code="reply_topic_refused", param="reply_to")
