"""Submits the requests of one sender: under its limits, in the audit log and in the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from edgekit.daemon.access.audit import AuditRecord
from edgekit.daemon.access.identity import Identity
from edgekit.daemon.access.limits import KeyLimits, Reservation, estimate_tokens
from edgekit.daemon.metrics import Metrics
from edgekit.errors import EdgekitError, internal_error
from edgekit.generation.engine.worker import OnEvent
from edgekit.generation.types import ChatRequest, Event, Failure, Finished

__all__ = ["BoundSubmit", "Submit"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Submit(Protocol[T_co]):
    """`EngineWorker.submit`, or one that binds requests to their sender."""

    def __call__(self, request: ChatRequest, on_event: OnEvent) -> T_co:
        """Queue a request; see `EngineWorker.submit`."""


class BoundSubmit(Generic[T]):
    """A `submit` for the requests of one sender.

    Args:
        submit: The worker's.
        identity: The sender.
        names: The model's name and aliases.
        record: The line in the audit log.
        limits: The limits of all keys.
        metrics: Counts the requests of each key; None counts none.
    """

    def __init__(
        self,
        submit: Submit[T],
        identity: Identity,
        names: Sequence[str],
        record: AuditRecord,
        *,
        limits: KeyLimits,
        metrics: Metrics | None,
    ) -> None:
        self._submit = submit
        self._identity = identity
        self._names = names
        self._record = record
        self._limits = limits
        self._metrics = metrics

    def __call__(self, request: ChatRequest, on_event: OnEvent) -> T:
        """Queue a request.

        Raises:
            EdgekitError: What the worker's raises, and `scope_missing`, `model_not_allowed` (RequestError) or
                `rate_limited` (UnavailableError).
        """
        return self.together([request])(request, on_event)

    def together(self, requests: Sequence[ChatRequest]) -> Submit[T]:
        """Reserve what several requests need: all are admitted, or none.

        Args:
            requests: At least one.

        Returns:
            A `submit` for each of them, in this order. If it raises, all are taken for refused, and cost nothing.

        Raises:
            RequestError: `scope_missing`, `model_not_allowed`, or `too_many_prompts` for the key at any time.
            UnavailableError: `rate_limited`.
        """
        reservations: list[Reservation] = []
        try:
            self._identity.check("inference", self._names)
            if self._identity.key is not None:
                estimates = [estimate_tokens(request) for request in requests]
                reservations += self._limits.admit_all(self._identity.key, estimates)
        except BaseException as raised:
            self._record.begin()
            self._refused(raised)
            raise
        waiting = iter(reservations)

        def submit(request: ChatRequest, on_event: OnEvent) -> T:
            self._record.begin()
            try:
                return self._submit(self._identity.bind(request), self._receiver(next(waiting, None), on_event))
            except BaseException as raised:
                for one in reservations:
                    one.cancel()
                self._refused(raised)
                raise

        return submit

    def _receiver(self, reservation: Reservation | None, on_event: OnEvent) -> OnEvent:
        def receive(event: Event) -> None:
            if isinstance(event, Finished | Failure):
                usage = event.usage if isinstance(event, Finished) else None
                # After a missed deadline the estimate stays: what was computed is not known.
                late = isinstance(event, Failure) and event.error.code == "deadline_exceeded"
                if reservation is not None and not late:
                    reservation.settle(0 if usage is None else usage.prompt_tokens + usage.completion_tokens)
                if self._metrics is not None:
                    self._metrics.by_key.ended(self._identity.label, self._names[0], event)
                self._record.generated(event)
            on_event(event)

        return receive

    def _refused(self, raised: BaseException) -> None:
        error = raised if isinstance(raised, EdgekitError) else internal_error(raised)
        if self._metrics is not None:
            self._metrics.by_key.refused(self._identity.label, self._names[0], error)
        self._record.generated(Failure(error))
