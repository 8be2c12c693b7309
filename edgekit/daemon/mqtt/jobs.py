"""Takes requests into the store, has them answered as there is room, and stores their ends.

Everything that a pass of the service's loop has to write is one transaction: the requests that the broker delivered,
the answers that became complete, the requests that begin, and the replies that the broker has acknowledged. Only after
it are requests acknowledged, begun and answered. If the disk is full, new requests are refused; accepted ones are still
answered.
"""

from __future__ import annotations

import logging
import secrets
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgekit.daemon.api import CollectedReply
from edgekit.daemon.boot_clock import BootClock
from edgekit.daemon.job_store import MAX_DEATHS, JobStore, StoreError
from edgekit.daemon.job_types import Job, JobKey, NewJob, Waiting
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.backlog import Backlog
from edgekit.daemon.mqtt.connection import Connection
from edgekit.daemon.mqtt.incoming import Incoming
from edgekit.daemon.mqtt.replies import Replies, last_message
from edgekit.daemon.mqtt.requests import OpenRequest, ReplyTo
from edgekit.daemon.mqtt.senders import Senders
from edgekit.daemon.rare_log import RareLog
from edgekit.errors import EdgekitError, RequestError, RunnerError, UnavailableError
from edgekit.generation.types import Finished
from edgekit.generation.usage import Timings, Usage

__all__ = ["Arrival", "Cancellation", "Jobs"]

_log = logging.getLogger(__name__)

RETRY_S = 1.0
"""Time until the disk, or an engine that took no request, is tried again."""
MAX_PAUSE_S = 5.0
"""The same for an engine that has refused for longer; it is asked with one request: each attempt is written to disk."""
_FORGET_S = 0.5
"""Time for which acknowledged replies wait to be removed from the store together, or with something else."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A delivered request that can be answered.

    Attributes:
        ack: Acknowledges the delivery.
    """

    incoming: Incoming
    envelope: messages.Envelope
    reply_to: ReplyTo
    ack: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A delivered cancellation."""

    key: JobKey
    ack: Callable[[], None]


@dataclass(slots=True)
class _End:
    """The end of a request that was begun.

    Attributes:
        keep: Whether its reply answers a repetition.
        sent: Whether it was sent without being stored, because it could not be.
    """

    request: OpenRequest
    payload: bytes
    keep: bool
    sent: bool = False


class Jobs:
    """The requests of the service, from their delivery to the broker's acknowledgement of their reply.

    Args:
        connection: Sends the replies.
        senders: Identifies the senders of requests.
        metrics: Counts requests.
        clock: Tells how long requests have waited.
        check: Checks the reply topic of a request, since the configuration may have changed after it was accepted.
        report: Reports a request whose reply topic is refused.
        start: Has a request answered; it ends by `end` or `put_back`.
        model: Returns the model's name.
        parallel: How many answers are generated at the same time.

    Attributes:
        open: The begun requests, by their numbers.
        repeated: Requests that repeated a running or answered one.
    """

    def __init__(
        self,
        connection: Connection,
        senders: Senders,
        metrics: Metrics,
        clock: BootClock,
        *,
        check: Callable[[JobKey], None],
        report: Callable[[str, EdgekitError], None],
        start: Callable[[OpenRequest], None],
        model: Callable[[], str],
        parallel: int,
    ) -> None:
        self._connection = connection
        self._senders = senders
        self._metrics = metrics
        self._clock = clock
        self._check = check
        self._report = report
        self._start = start
        self._model = model
        # The next ones are prepared while these are answered.
        self._window = parallel + 2
        self._store: JobStore | None = None
        self._replies = Replies(connection, check)
        self._backlog = Backlog()
        self._stale = False
        self._arrivals: list[Arrival | Cancellation] = []
        self._ends: list[_End] = []
        self._waiting_again: list[Waiting] = []
        self._retry_at = self._begin_at = self._forget_at = 0.0
        self._pause_s = 0.0
        self._failures = RareLog(_log)
        self._begun: list[OpenRequest] = []
        self.open: dict[int, OpenRequest] = {}
        self.repeated = 0

    @property
    def persistent(self) -> bool:
        """Whether requests survive this process."""
        return self._store is not None and self._store.persistent

    @property
    def unanswered(self) -> int:
        """Requests that are accepted and not answered."""
        return 0 if self._store is None else self._store.unanswered

    @property
    def unsent(self) -> int:
        """Stored replies that the broker has not acknowledged."""
        return 0 if self._store is None else self._store.unsent

    def use(self, store: JobStore) -> None:
        """Go on with what is in a store; before this nothing else is called."""
        self._store = store
        self._backlog = Backlog(store.waiting())
        if len(self._backlog) or store.unsent:
            _log.info(
                "mqtt: %d requests are still to be answered, and %d replies to be sent",
                len(self._backlog),
                store.unsent,
            )

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()

    def next_attempt(self) -> int:
        """Return the number of an attempt that is not begun, for its error."""
        return 0 if self._store is None else self._store.next_attempt()

    def arrived(self, delivery: Arrival | Cancellation) -> None:
        """Take a delivery; `exchange` handles it."""
        self._arrivals.append(delivery)

    def reject(
        self,
        reply_to: ReplyTo,
        request_id: str | None,
        user: str | None,
        problem: EdgekitError,
        ack: Callable[[], None],
    ) -> None:
        """Answer a delivery that is not accepted with an error; it is acknowledged once the broker has that."""
        self._count(request_id, user, problem)
        payload = messages.encode(messages.error(request_id, self.next_attempt(), problem))
        self._connection.send(reply_to.message(payload, on_settled=ack))

    def end(self, request: OpenRequest, payload: bytes, *, keep: bool) -> None:
        """End a begun request with this last message; with `keep` it answers a repetition, too."""
        if self.open.pop(request.job.n, None) is request:
            self._ends.append(_End(request, payload, keep))

    def put_back(self, request: OpenRequest) -> None:
        """Have a begun request wait for its turn again, first of its sender: the engine did not take it, or stops."""
        if self.open.pop(request.job.n, None) is request:
            job = request.job
            self._waiting_again.append(Waiting(job.n, job.key, job.due_s, request.suspect))
            self._pause_s = min(MAX_PAUSE_S, max(RETRY_S, 2 * self._pause_s))
            self._begin_at = time.monotonic() + self._pause_s

    def refuse_all(self, problem: EdgekitError) -> None:
        """End all that waits with an error."""
        store = self._store
        if store is not None:
            with store.transaction():
                for waiting in store.waiting():
                    self._refuse_waiting(store, waiting.n, problem)
            self._backlog = Backlog()

    def taken(self) -> None:
        """Note that the engine has taken a request, and so takes more."""
        self._pause_s = 0.0

    def next_wait_s(self) -> float:
        """Seconds until `exchange` has something to do."""
        now, due = time.monotonic(), [RETRY_S]
        behind = self._store is not None and self._replies.is_behind(self._store)
        if self._arrivals or self._ends or self._waiting_again or behind:
            due.append(self._retry_at - now)
        if self._replies.settled:
            due.append(max(self._forget_at, self._retry_at) - now)
        if self._backlog:
            due.append(max(self._begin_at, self._retry_at) - now if self._has_room() else RETRY_S)
        due_s = self._backlog.next_due_s()
        if due_s is not None:
            due.append(max(due_s - self._clock.now(), self._retry_at - now))
        return max(0.0, min(due))

    def exchange(self, *, begin: bool = True) -> None:
        """Write what has changed, and then acknowledge, begin and answer; `begin` is false while the service stops."""
        store = self._store
        if store is None or (begin and self.next_wait_s() > 0.0):
            return
        arrivals, self._arrivals = self._arrivals, []
        settled = [*self._replies.settled]
        begun = self._begun = list[OpenRequest]()
        try:
            with store.transaction():
                if self._stale:
                    self._backlog = Backlog(store.waiting())
                for n in settled:
                    store.sent(n)
                for end in self._ends:
                    job, correlation = end.request.job, end.request.reply_to.correlation
                    if correlation != job.correlation:
                        store.renew(job.n, correlation)
                    store.finish(job.n, end.request.attempt, end.payload, keep=end.keep, deliver=not end.sent)
                for waiting in self._waiting_again:
                    store.release(waiting.n)
                    self._backlog.add(waiting, first=True)
                after = [self._apply(store, delivery) for delivery in arrivals]
                if begin:
                    self._begin(store)
        except StoreError as error:
            self._on_failure(store, error, arrivals)
            return
        self._stale = False
        del self._replies.settled[: len(settled)]
        self._ends.clear()
        self._waiting_again.clear()
        for step in after:
            step()
        self.open.update({request.job.n: request for request in begun})
        self._begun = []
        for request in begun:
            self._start(request)
        try:
            self._replies.hand_over(store)
        except StoreError as error:
            self._failures.warning(f"mqtt: {error}")
            self._retry_at = time.monotonic() + RETRY_S
        self._forget_at = time.monotonic() + _FORGET_S

    def _on_failure(self, store: JobStore, error: StoreError, arrivals: list[Arrival | Cancellation]) -> None:
        """Refuse what was delivered, and send without storing it what was answered."""
        self._failures.warning(f"mqtt: {error}; no request is accepted until then")
        self._begun = []
        self._stale = True
        self._retry_at = time.monotonic() + RETRY_S
        refusal = UnavailableError(
            "the device cannot store the request", hint="is its disk full?", code="overloaded", retry_after_s=30.0
        )
        for delivery in arrivals:
            if isinstance(delivery, Cancellation):
                for request in self.open.values():
                    if request.job.key == delivery.key:
                        request.cancel()
                delivery.ack()
                continue
            known = None
            with suppress(StoreError):
                known = self._find(store, delivery)
            if known is not None and known.digest == delivery.envelope.digest():
                # It is accepted already, and an error would tell its caller to wait no longer.
                self._repeat(known, delivery)
            else:
                self.reject(delivery.reply_to, _id(delivery), delivery.incoming.user, refusal, delivery.ack)
        for end in self._ends:
            if not end.sent:
                end.sent = True
                request = end.request
                self._connection.send(last_message(request.reply_to, request.id, request.attempt, end.payload))

    # Deliveries, in the transaction. Each returns what is to be done after it.

    def _apply(self, store: JobStore, delivery: Arrival | Cancellation) -> Callable[[], None]:
        if isinstance(delivery, Cancellation):
            return self._cancel(store, delivery)
        user = delivery.incoming.user
        try:
            return self._take(store, delivery)
        except StoreError:
            raise
        except EdgekitError as exc:
            problem = exc
        except Exception:  # noqa: BLE001 - the caller waits for a reply, whatever failed
            _log.exception("mqtt: a request failed")
            problem = EdgekitError("the request failed inside the daemon", hint="see the daemon's log")
        return partial(self.reject, delivery.reply_to, _id(delivery), user, problem, delivery.ack)

    def _take(self, store: JobStore, arrival: Arrival) -> Callable[[], None]:
        """Accept a request, or answer a repeated one from the record."""
        incoming, envelope = arrival.incoming, arrival.envelope
        self._senders.identify(incoming.user)
        given, digest = _id(arrival), envelope.digest()
        job = self._find(store, arrival)
        if job is not None and job.digest == digest:
            if job.final is None and job.correlation != arrival.reply_to.correlation:
                store.renew(job.n, arrival.reply_to.correlation)
            return partial(self._repeat, job, arrival)
        if job is not None and job.final is None:
            raise RequestError(
                "another request with this id is in progress",
                hint="give every request its own id, such as a UUID",
                code="id_in_use",
                param="id",
            )
        if store.is_deadly(digest):
            raise _deadly()
        if job is not None:
            store.drop(job.n)
        limits = [limit for limit in (envelope.deadline_s, incoming.expiry_s) if limit is not None]
        waiting = store.add(
            NewJob(
                JobKey(arrival.reply_to.topic, incoming.user or "", given or f"chat-{uuid.uuid4().hex}"),
                digest,
                incoming.payload,
                arrival.reply_to.correlation,
                seed=secrets.randbits(63),
                limit_s=min(limits, default=None),
                delivery=None if given is not None else incoming.delivery,
            )
        )
        self._backlog.add(waiting)
        return arrival.ack

    @staticmethod
    def _find(store: JobStore, arrival: Arrival) -> Job | None:
        """Return the request with the id of a delivery, or the one that an earlier delivery of it brought."""
        incoming, topic = arrival.incoming, arrival.reply_to.topic
        given = _id(arrival)
        if given is not None:
            return store.find(JobKey(topic, incoming.user or "", given))
        if incoming.again:
            return store.find_delivery(topic, incoming.user or "", arrival.envelope.digest(), incoming.delivery)
        return None

    def _repeat(self, job: Job, arrival: Arrival) -> None:
        """Answer a repeated request from the record, or as soon as it is answered."""
        self.repeated += 1
        self._senders.not_submitted(job.key.id, arrival.incoming.user, "repeated")
        request = self.open.get(job.n)
        if request is not None:
            request.reply_to = arrival.reply_to
        if job.final is None:
            arrival.ack()
            return
        final = last_message(arrival.reply_to, job.key.id, job.attempt, job.final, arrival.ack)
        # A request that the broker delivers again after a lost connection often comes before its answer has left.
        if self._connection.holds(final):
            arrival.ack()
        else:
            self._connection.send(final)

    def _cancel(self, store: JobStore, cancellation: Cancellation) -> Callable[[], None]:
        job = store.find(cancellation.key)
        if job is None or job.final is not None:
            # Usually it crossed with the last message, so no reply is needed.
            _log.debug("mqtt: a cancellation matched no open request")
            return cancellation.ack
        store.cancel(job.n)
        request = self.open.get(job.n)
        if request is None:
            self._backlog.remove(job.n)
            self._finish_waiting(store, job, self._cancelled(job))
            return cancellation.ack

        def cancel() -> None:
            request.cancel()
            cancellation.ack()

        return cancel

    # Beginning, in the transaction.

    def _has_room(self) -> bool:
        """Whether a request may begin: a suspect runs alone, and one is tried where the engine refused."""
        begun = [*self.open.values(), *self._begun]
        if self._backlog.has_suspect() or any(request.suspect for request in begun):
            return not begun
        return len(begun) < (1 if self._pause_s else self._window)

    def _begin(self, store: JobStore) -> None:
        """Begin requests while there is room, and end those that need not be answered any more."""
        while (late := self._backlog.take_late(self._clock.now())) is not None:
            problem = RequestError("the deadline has passed", code="deadline_exceeded", param="deadline_s")
            self._refuse_waiting(store, late.n, problem)
        while self._backlog and self._has_room() and time.monotonic() >= self._begin_at:
            waiting = self._backlog.take()
            job = None if waiting is None else store.load(waiting.n)
            if job is None:
                continue
            if job.cancelled:
                self._finish_waiting(store, job, self._cancelled(job))
                continue
            if job.deaths >= MAX_DEATHS:
                self._refuse_waiting(store, job.n, _deadly(), keep=True)
                continue
            try:
                request = self._open(job)
            except EdgekitError as refusal:
                if refusal.code == "reply_topic_refused":
                    store.finish(job.n, 0, b"", keep=False, deliver=False)
                    self._report(job.key.id, refusal)
                else:
                    self._refuse_waiting(store, job.n, refusal)
                continue
            request.attempt = store.begin(job.n)
            self._begun.append(request)

    def _open(self, job: Job) -> OpenRequest:
        self._check(job.key)
        identity = self._senders.identify(job.key.sender or None)
        return OpenRequest(job, ReplyTo(job.key.reply_to, job.correlation), 0, identity, suspect=job.suspect)

    def _refuse_waiting(self, store: JobStore, n: int, problem: EdgekitError, *, keep: bool = False) -> None:
        job = store.load(n)
        if job is not None:
            self._count(job.key.id, job.key.sender or None, problem)
            self._finish_waiting(store, job, messages.error(job.key.id, store.next_attempt(), problem), keep=keep)

    def _finish_waiting(self, store: JobStore, job: Job, message: dict[str, Any], *, keep: bool = False) -> None:
        store.finish(job.n, message["attempt"], messages.encode(message), keep=keep)

    def _cancelled(self, job: Job) -> dict[str, Any]:
        """The last message of a request that was cancelled before it began."""
        end = Finished("cancelled", Usage(0, 0), Timings(0.0, 0.0, 0.0))
        self._metrics.track("mqtt", lambda _: None)(end)
        return messages.final(job.key.id, self.next_attempt(), 0, CollectedReply(1), end, model=self._model())

    def _count(self, request_id: str | None, user: str | None, problem: EdgekitError) -> None:
        self._metrics.refused("mqtt", problem)
        self._senders.not_submitted(request_id, user, problem.code)


def _deadly() -> RunnerError:
    return RunnerError(
        f"this request has ended the daemon {MAX_DEATHS} times; it is not tried again",
        hint="the daemon's log may show why; change the request",
    )


def _id(arrival: Arrival) -> str | None:
    return arrival.envelope.id or arrival.incoming.implied_id
