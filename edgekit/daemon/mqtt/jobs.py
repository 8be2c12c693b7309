"""Requests under way, and the answers given lately; what makes a repeated request harmless.

It knows no broker: `door.py` decides when to publish.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from edgekit.daemon.mqtt.pieces import Pending
from edgekit.daemon.wire import Gathered
from edgekit.generation.request import Delta, Ended, Failure, Finish, ToolCallDelta

__all__ = ["Cancels", "Finished", "Job", "JobKey", "Record", "Reply"]

JobKey = tuple[str, str]
"""Response topic and id: one caller's ids cannot meet another's."""


class Cancels(Protocol):
    """All of a `Ticket` that the door uses."""

    def cancel(self) -> None:
        """Nobody wants the answer any more; harmless when it is over."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Where answers go.

    Attributes:
        correlation: MQTT 5 Correlation Data, given back as it came; None if the caller gave none.
    """

    topic: str
    correlation: bytes | None = None


@dataclass(slots=True)
class Job:
    """One request that the scheduler has accepted.

    Attributes:
        id: The id that replies carry.
        named: Whether the caller chose the id (or Correlation Data), so that it can ask again.
        logprobs: Whether replies carry log probabilities.
        ticket: None until `submit` has returned.
        seq: Number of the next delta.
        pending: Pieces that no delta has carried yet.
        written: All of the answers so far.
        flush_at: `time.monotonic()` before which the pending pieces are not sent.
        end: The last event, once it has come.
    """

    key: JobKey
    id: str
    named: bool
    reply: Reply
    stream: bool
    digest: bytes
    written: Gathered
    logprobs: bool = False
    ticket: Cancels | None = None
    seq: int = 0
    pending: Pending = field(default_factory=Pending)
    flush_at: float = 0.0
    end: Finish | Failure | None = None

    def add(self, piece: Delta | ToolCallDelta | Ended) -> None:
        """Take a piece of an answer, or the end of one of several."""
        if not isinstance(piece, Ended):
            self.written.add(piece)
        if self.stream:
            self.pending.add(piece)

    def cancel(self) -> None:
        """Tell the scheduler; the job ends with its last event."""
        if self.ticket is not None:
            self.ticket.cancel()


@dataclass(frozen=True, slots=True)
class Finished:
    """An answer that was given: the payload of its final message."""

    digest: bytes
    payload: bytes
    at: float


class Record:
    """Answers given lately, bounded in number, bytes and age; the oldest go first.

    Args:
        max_entries: Most answers kept.
        max_bytes: Most bytes of payload kept.
        max_age_s: Older answers are forgotten.
    """

    def __init__(self, *, max_entries: int = 256, max_bytes: int = 4 << 20, max_age_s: float = 600.0) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._bytes = 0
        self._entries: OrderedDict[JobKey, Finished] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: JobKey, finished: Finished) -> None:
        """Keep an answer, in place of an older one of the same key."""
        self._drop(key)
        self._entries[key] = finished
        self._bytes += len(finished.payload)
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def get(self, key: JobKey, digest: bytes, now: float) -> Finished | None:
        """Return the answer to the same request, if it is still known."""
        found = self._entries.get(key)
        if found is None or found.digest != digest:
            return None
        if now - found.at > self._max_age_s:
            self._drop(key)
            return None
        return found

    def _drop(self, key: JobKey) -> None:
        gone = self._entries.pop(key, None)
        if gone is not None:
            self._bytes -= len(gone.payload)
