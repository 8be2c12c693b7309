"""What the store of jobs takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Job", "JobKey", "NewJob", "Reply", "StoreLimits", "Waiting"]


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Limits of what is kept.

    Attributes:
        jobs: Maximum number of jobs that are not answered, and of replies that have not left.
        job_bytes: Maximum size of the jobs' bodies.
        answers: Maximum number of answers in the record.
        answer_bytes: Maximum size of the record.
        answer_s: Age at which an answer leaves it.
    """

    jobs: int = 4096
    job_bytes: int = 32 << 20
    answers: int = 4096
    answer_bytes: int = 16 << 20
    answer_s: float = 86_400.0


class JobKey(NamedTuple):
    """Names a job, so that the ids of different senders cannot collide.

    Attributes:
        reply_to: Where its reply goes.
        sender: The sender's name; empty without one.
        id: Its id.
    """

    reply_to: str
    sender: str
    id: str


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to accept.

    Attributes:
        digest: Hash of what it asks, by which a repetition is recognized.
        body: What it asks.
        correlation: Returned with the reply.
        seed: For its random numbers, in every attempt.
        limit_s: Seconds in which it must be answered; None for any time.
        delivery: Number of its delivery, if it had no id of its own; see `find_delivery`.
    """

    key: JobKey
    digest: bytes
    body: bytes
    correlation: bytes | None
    seed: int
    limit_s: float | None = None
    delivery: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job of the store.

    Attributes:
        n: Its number, which grows.
        came_s: When it came, by the boot clock.
        attempt: Number of the last attempt to answer it; 0 before the first one.
        suspect: It was running when a process ended, and is to be run alone.
        deaths: How often the process ended while nothing else was running.
        cancelled: It need not be answered in full.
        final: Its answer; None while it has none.
        body: What it asks; None once it is answered.
    """

    n: int
    key: JobKey
    digest: bytes
    correlation: bytes | None
    seed: int
    came_s: float
    limit_s: float | None
    attempt: int
    suspect: bool
    deaths: int
    cancelled: bool
    final: bytes | None
    body: bytes | None

    @property
    def due_s(self) -> float | None:
        """When it must be answered, by the boot clock."""
        return None if self.limit_s is None else self.came_s + self.limit_s


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is kept in memory of a job that waits.

    Attributes:
        due_s: When it must be answered, by the boot clock.
    """

    n: int
    key: JobKey
    due_s: float | None
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply in the outbox."""

    n: int
    key: JobKey
    attempt: int
    correlation: bytes | None
    payload: bytes
