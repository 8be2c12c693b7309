"""Open requests, and a cache of recent final messages that makes a repeated request harmless."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from edgekit.daemon.access.identity import ANONYMOUS, Identity
from edgekit.daemon.api import CollectedReply
from edgekit.daemon.mqtt.coalesce import DeltaBuffer
from edgekit.daemon.mqtt.messages import CONTENT_TYPE
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.generation.types import ChoiceFinished, Delta, Failure, Finished, ToolCallDelta

__all__ = ["CachedReply", "Cancellable", "OpenRequest", "ReplyCache", "ReplyTo", "RequestKey"]

RequestKey = tuple[str, str, str | None]
"""Response Topic, request id and user, so that the ids of different callers cannot collide."""


class Cancellable(Protocol):
    """The part of `RequestState` that the MQTT service uses."""

    def cancel(self) -> None:
        """Cancel the request; harmless when it has ended."""


@dataclass(frozen=True, slots=True)
class ReplyTo:
    """Where replies go.

    Attributes:
        topic: The caller's Response Topic.
        correlation: Correlation Data, returned unchanged; None if the caller set none.
    """

    topic: str
    correlation: bytes | None = None

    def message(
        self,
        payload: bytes,
        *,
        fallback: Outgoing | None = None,
        on_no_subscribers: Callable[[], None] | None = None,
    ) -> Outgoing:
        """Return a reply with this payload; the other arguments are as in `Outgoing`."""
        return Outgoing(
            self.topic,
            payload,
            self.correlation,
            CONTENT_TYPE,
            fallback=fallback,
            on_no_subscribers=on_no_subscribers,
        )


@dataclass(slots=True)
class OpenRequest:
    """A request that is prepared, waiting or running.

    Attributes:
        id: The id in replies.
        attempt: Number of this attempt to answer it: see `Attempts`.
        id_given: Whether the caller set the id (or Correlation Data), so that it can repeat the request.
        digest: Hash of the request's body.
        received: `time.monotonic()` when it came.
        acks: Acknowledge its deliveries; called once it is prepared.
        size: Bytes of its payload.
        prepared: Whether the engine worker has accepted or refused it.
        cancelled: Whether it is to be cancelled.
        collected: The answers so far.
        logprobs: Whether replies carry log probabilities.
        identity: The sender.
        state: None until `submit` has returned.
        seq: Number of the next delta message.
        pending: Deltas that have not been sent yet.
        flush_at: `time.monotonic()` before which pending deltas are not sent.
        end: The last event; None until it has arrived.
    """

    key: RequestKey
    id: str
    attempt: int
    id_given: bool
    reply_to: ReplyTo
    stream: bool
    digest: bytes
    received: float
    acks: list[Callable[[], None]]
    size: int = 0
    prepared: bool = False
    cancelled: bool = False
    collected: CollectedReply = field(default_factory=lambda: CollectedReply(1))
    logprobs: bool = False
    identity: Identity = ANONYMOUS
    state: Cancellable | None = None
    seq: int = 0
    pending: DeltaBuffer = field(default_factory=DeltaBuffer)
    flush_at: float = 0.0
    end: Finished | Failure | None = None

    def add(self, event: Delta | ToolCallDelta | ChoiceFinished) -> None:
        """Take a delta of an answer, or the end of one of several."""
        if not isinstance(event, ChoiceFinished):
            self.collected.add(event)
        if self.stream:
            self.pending.add(event)

    def cancel(self) -> None:
        """Cancel the generation, as soon as it is submitted; the request stays open until its last event."""
        self.cancelled = True
        if self.state is not None:
            self.state.cancel()

    def submitted(self, state: Cancellable) -> None:
        """Take the handle of the generation, on any thread."""
        self.state = state
        if self.cancelled:
            state.cancel()


@dataclass(frozen=True, slots=True)
class CachedReply:
    """The final message of an answered request.

    Attributes:
        attempt: Number of the attempt that it answers.
        digest: Hash of the request's body.
        payload: The message's payload.
        at: `time.monotonic()` when it was sent.
    """

    attempt: int
    digest: bytes
    payload: bytes
    at: float


class ReplyCache:
    """Recent final messages, limited in number, bytes and age; the oldest are evicted first.

    Args:
        max_entries: Maximum number of messages.
        max_bytes: Maximum bytes of payload.
        max_age_s: Maximum age in seconds.
    """

    def __init__(self, *, max_entries: int = 256, max_bytes: int = 4 << 20, max_age_s: float = 600.0) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._bytes = 0
        self._entries: OrderedDict[RequestKey, CachedReply] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: RequestKey, reply: CachedReply) -> None:
        """Store a reply, replacing an older one with the same key."""
        self._evict(key)
        self._entries[key] = reply
        self._bytes += len(reply.payload)
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._evict(next(iter(self._entries)))

    def get(self, key: RequestKey, digest: bytes, now: float) -> CachedReply | None:
        """Return the reply to the same request, if it is still cached."""
        reply = self._entries.get(key)
        if reply is None or reply.digest != digest:
            return None
        if now - reply.at > self._max_age_s:
            self._evict(key)
            return None
        return reply

    def _evict(self, key: RequestKey) -> None:
        evicted = self._entries.pop(key, None)
        if evicted is not None:
            self._bytes -= len(evicted.payload)
