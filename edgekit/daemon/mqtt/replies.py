"""Replies from the outbox of the store to the connection, and back from it when the broker has them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from edgekit.daemon.job_store import JobStore
from edgekit.daemon.job_types import JobKey
from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.connection import Connection
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.daemon.mqtt.requests import ReplyTo
from edgekit.errors import RequestError

__all__ = ["Replies", "last_message"]

_log = logging.getLogger(__name__)

_MAX_HANDED = 64
_MAX_HANDED_BYTES = 16 << 20
"""The rest waits in the store: what the connection holds is in memory."""


class Replies:
    """Gives the connection as many stored replies as it should hold.

    Args:
        connection: Sends them.
        check: Checks a reply topic by the present configuration, which may have changed since the request was accepted.

    Attributes:
        settled: Numbers of replies that need not be sent again; the owner removes them from the store.
    """

    def __init__(self, connection: Connection, check: Callable[[JobKey], None]) -> None:
        self._connection = connection
        self._check = check
        self._last = 0
        self._handed: dict[int, int] = {}
        self.settled: list[int] = []

    def is_behind(self, store: JobStore) -> bool:
        """Whether replies of the outbox are to be handed over: not one by one while there are many."""
        return store.unsent > len(self._handed) + len(self.settled) and len(self._handed) <= _MAX_HANDED // 2

    def hand_over(self, store: JobStore) -> None:
        """Send the next replies of the outbox.

        Raises:
            StoreError: It cannot be read.
        """
        while len(self._handed) < _MAX_HANDED and sum(self._handed.values()) < _MAX_HANDED_BYTES:
            reply = store.reply(self._last)
            if reply is None:
                return
            self._last = reply.n
            try:
                self._check(reply.key)
            except RequestError as error:
                _log.warning("mqtt: a reply is not sent: %s", error)
                self.settled.append(reply.n)
                continue
            self._handed[reply.n] = len(reply.payload)
            to, settle = ReplyTo(reply.key.reply_to, reply.correlation), partial(self._settle, reply.n)
            self._connection.send(last_message(to, reply.key.id, reply.attempt, reply.payload, settle))

    def _settle(self, n: int) -> None:
        if self._handed.pop(n, None) is not None:
            self.settled.append(n)


def last_message(
    reply_to: ReplyTo, request_id: str, attempt: int, payload: bytes, on_settled: Callable[[], None] | None = None
) -> Outgoing:
    """Return the last message of a reply, with the error that replaces it where the broker does not take it."""
    too_large = RequestError(
        f"the answer has {len(payload)} bytes, which the broker does not take",
        hint="lower `max_tokens`, or raise the broker's maximum size of packets or messages",
        code="reply_too_large",
    )
    error = messages.encode(messages.error(request_id, attempt, too_large))
    fallback = reply_to.message(error, on_settled=on_settled)
    return reply_to.message(payload, fallback=fallback, on_settled=on_settled)
