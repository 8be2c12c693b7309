"""The senders of requests, by the user's name in the topic, and their lines in the audit log."""

from __future__ import annotations

from edgekit.daemon.access.access import Access
from edgekit.daemon.access.audit import AuditRecord
from edgekit.daemon.access.identity import ANONYMOUS, Identity
from edgekit.daemon.mqtt.topics import Topics
from edgekit.errors import RequestError

__all__ = ["Senders"]


class Senders:
    """Identifies senders.

    Args:
        access: The keys and the audit log.
        topics: The device's topics, for messages.
        require_user: Whether a request needs a user's name.
    """

    def __init__(self, access: Access, topics: Topics, *, require_user: bool) -> None:
        self._access = access
        self._topics = topics
        self._require_user = require_user

    def identify(self, user: str | None) -> Identity:
        """Return the sender of a request.

        Args:
            user: The user's name in the topic; None if it has none.

        Raises:
            RequestError: `user_required`, or `api_key_expired`.
        """
        if user is not None:
            return self._access.identify_user(user)
        if self._require_user:
            raise RequestError(
                "this device answers users only",
                hint=f"publish to {self._topics.request}/USER, with your user name at the broker",
                code="user_required",
            )
        return ANONYMOUS

    def not_submitted(self, request_id: str | None, user: str | None, outcome: str) -> None:
        """Write the line of a request that is not submitted.

        Args:
            request_id: Its id, if it is known.
            user: The user's name in the topic.
            outcome: Why it is not: an error code, or `repeated`.
        """
        record = AuditRecord(self._access.audit, "mqtt", request_id=request_id or "", what="chat/request")
        if user is not None:
            record.identity = self._access.name_user(user)
        record.refused(outcome)
        record.replied()
