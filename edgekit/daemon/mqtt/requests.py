"""Requests that are being answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from edgekit.daemon.access.identity import ANONYMOUS, Identity
from edgekit.daemon.api import CollectedReply
from edgekit.daemon.job_types import Job
from edgekit.daemon.mqtt.coalesce import DeltaBuffer
from edgekit.daemon.mqtt.messages import CONTENT_TYPE
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.generation.types import ChoiceFinished, Delta, Failure, Finished, ToolCallDelta

__all__ = ["Cancellable", "OpenRequest", "ReplyTo"]


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
        on_settled: Callable[[], None] | None = None,
    ) -> Outgoing:
        """Return a reply with this payload; the other arguments are as in `Outgoing`."""
        return Outgoing(
            self.topic,
            payload,
            self.correlation,
            CONTENT_TYPE,
            fallback=fallback,
            on_no_subscribers=on_no_subscribers,
            on_settled=on_settled,
        )


@dataclass(slots=True)
class OpenRequest:
    """A request that is prepared, waits in the engine's queue, or runs.

    Attributes:
        job: The request in the store.
        reply_to: Where the newest delivery wants its reply.
        attempt: Number of this attempt to answer it, greater than those before.
        identity: The sender.
        suspect: It was running when a daemon ended, and runs alone.
        stream: Whether to send deltas.
        cancelled: Whether it is to be cancelled.
        collected: The answers so far.
        logprobs: Whether replies carry log probabilities.
        ignored: Names of the first few fields of the body that are ignored.
        state: None until `submit` has returned.
        seq: Number of the next delta message.
        pending: Deltas that have not been sent yet.
        flush_at: `time.monotonic()` before which pending deltas are not sent.
        end: The last event; None until it has arrived.
    """

    job: Job
    reply_to: ReplyTo
    attempt: int
    identity: Identity = ANONYMOUS
    suspect: bool = False
    stream: bool = False
    cancelled: bool = False
    collected: CollectedReply = field(default_factory=lambda: CollectedReply(1))
    logprobs: bool = False
    ignored: tuple[str, ...] = ()
    state: Cancellable | None = None
    seq: int = 0
    pending: DeltaBuffer = field(default_factory=DeltaBuffer)
    flush_at: float = 0.0
    end: Finished | Failure | None = None

    @property
    def id(self) -> str:
        """The id in replies."""
        return self.job.key.id

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
