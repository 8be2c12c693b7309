"""Jobs in a SQLite file: an inbox of accepted jobs, a record of their answers, and an outbox of replies to send.

A job is known by where its reply goes, who sent it and its id. What a `transaction` changed is on the disk when it ends
(WAL, `synchronous=FULL`), or has not happened; so callers take, begin and finish as many jobs as they can in one. How
jobs come and replies leave is the callers' affair.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from edgekit.daemon.boot_clock import BootClock, Moment
from edgekit.daemon.job_types import Job, JobKey, NewJob, Reply, StoreLimits, Waiting
from edgekit.errors import EdgekitError, UnavailableError

__all__ = ["MAX_DEATHS", "JobStore", "StoreError"]

_log = logging.getLogger(__name__)

MAX_DEATHS = 2
"""Ends of the process, while nothing but this job was running, after which it is not run again."""

_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (
  one INTEGER PRIMARY KEY CHECK (one = 1), boot TEXT NOT NULL, seen_s REAL NOT NULL, wall_s REAL NOT NULL,
  attempt INTEGER NOT NULL
);
CREATE TABLE job (
  n INTEGER PRIMARY KEY, reply_to TEXT NOT NULL, sender TEXT NOT NULL, id TEXT NOT NULL, digest BLOB NOT NULL,
  correlation BLOB, delivery INTEGER, seed INTEGER NOT NULL, came_s REAL NOT NULL, limit_s REAL,
  state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'answered')), attempt INTEGER NOT NULL,
  suspect INTEGER NOT NULL, deaths INTEGER NOT NULL, cancelled INTEGER NOT NULL, done_s REAL, final BLOB,
  UNIQUE (reply_to, sender, id)
);
CREATE TABLE body (n INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE outbox (
  n INTEGER PRIMARY KEY, reply_to TEXT NOT NULL, sender TEXT NOT NULL, id TEXT NOT NULL, attempt INTEGER NOT NULL,
  correlation BLOB, job INTEGER, payload BLOB
);
"""
_JOB = (
    "SELECT n, reply_to, sender, id, digest, correlation, seed, came_s, limit_s, attempt, suspect, deaths, cancelled,"
    " final, (SELECT body FROM body WHERE body.n = job.n) FROM job"
)
_SEEN_EVERY_S = 5.0
_RESERVED_ATTEMPTS = 1000
_WAL_BYTES = 4 << 20
LOCK_WAIT_S = 5.0
"""An earlier process may take a moment to end."""


class StoreError(EdgekitError):
    """The file cannot be read or written."""

    code = "store_failed"


class JobStore:
    """The store of one process, used on the thread that makes it.

    Args:
        path: The file, in an existing folder; None keeps everything in memory. A damaged file is moved aside, with a
            line in the log.
        limits: What is kept; None has the defaults.
        clock: Tells the time.

    Raises:
        StoreError: The file cannot be opened now: the disk is full, or another process has it open.
    """

    def __init__(self, path: Path | None, limits: StoreLimits | None = None, clock: BootClock | None = None) -> None:
        self.persistent = path is not None
        self._path = path
        self._limits = limits or StoreLimits()
        self._clock = clock or BootClock()
        self._last = self._attempt = self._reserved = 0
        self._seen = self._clock.moment()
        self._sizes: dict[int, int] = {}
        self._bytes = 0
        self._unsent = 0
        self._answers: OrderedDict[int, tuple[int, float]] = OrderedDict()
        self._answer_bytes = 0
        self._deadly: set[bytes] = set()
        try:
            self._db = self._open()
        except _DamagedError as damage:
            aside = damage.path.with_name(f"{damage.path.name}.damaged")
            _log.error("the jobs in %s are lost: %s; the file is now %s", damage.path, damage, aside.name)
            # The log first: SQLite would apply it to a new file.
            for suffix in ("-wal", "-shm", ""):
                with suppress(FileNotFoundError):
                    Path(f"{damage.path}{suffix}").replace(f"{aside}{suffix}")
            try:
                self._db = self._open()
            except _DamagedError as again:
                raise StoreError(f"{damage.path} cannot be used: {again}") from again

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @property
    def unanswered(self) -> int:
        """Jobs that are accepted and not answered."""
        return len(self._sizes)

    @property
    def unsent(self) -> int:
        """Replies in the outbox."""
        return self._unsent

    def next_attempt(self) -> int:
        """Return a number greater than all before it, those before a restart included.

        They begin at the clock's milliseconds, or after the highest one that is stored (reserved in blocks), whichever
        is greater: so they grow though the clock goes back, and though the file is lost.
        """
        self._attempt += 1
        return self._attempt

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all changes inside durable at the end, or none of them if anything raises.

        Raises:
            StoreError: They cannot be written.
        """
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._trim()
            self._update_meta()
            self._run("COMMIT")
        except BaseException:
            self._reserved = 0
            with suppress(StoreError):
                if self._db.in_transaction:
                    self._run("ROLLBACK")
                self._count()
            raise

    # The inbox. All of these that change something are called in a transaction.

    def find(self, key: JobKey) -> Job | None:
        """Return a job, answered or not; None if there is none, or it is too old."""
        return self._one("reply_to = ? AND sender = ? AND id = ?", *key)

    def find_delivery(self, reply_to: str, sender: str, digest: bytes, delivery: int) -> Job | None:
        """Return the job without an id of its own that a delivery with this number brought."""
        return self._one(
            "reply_to = ? AND sender = ? AND digest = ? AND delivery = ?", reply_to, sender, digest, delivery
        )

    def is_deadly(self, digest: bytes) -> bool:
        """Whether the record has a job that asked the same and has ended the process `MAX_DEATHS` times."""
        return digest in self._deadly

    def load(self, n: int) -> Job | None:
        """Return a job by its number."""
        return self._one("n = ?", n)

    def waiting(self) -> list[Waiting]:
        """Return the jobs that are accepted and not begun, the oldest first."""
        rows = self._run(
            "SELECT n, reply_to, sender, id, came_s + limit_s, suspect FROM job WHERE state = 'queued' ORDER BY n"
        )
        return [Waiting(n, JobKey(*key), due_s, bool(suspect)) for n, *key, due_s, suspect in rows]

    def add(self, new: NewJob) -> Waiting:
        """Accept a job; one with the same key must have been dropped.

        Raises:
            UnavailableError: `overloaded`: the inbox is full.
        """
        count = len(self._sizes) + self._unsent
        if count >= self._limits.jobs or (count and self._bytes + len(new.body) > self._limits.job_bytes):
            raise UnavailableError(
                f"the inbox is full: {count} requests are not answered yet, with {self._bytes >> 10} KiB",
                hint="ask again later, or raise `mqtt.inbox_requests` or `mqtt.inbox_mib`",
                code="overloaded",
                retry_after_s=10.0,
            )
        n, came_s = self._number(), self._clock.now()
        self._run(
            "INSERT INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'queued', 0, 0, 0, 0, NULL, NULL)",
            (n, *new.key, new.digest, new.correlation, new.delivery, new.seed, came_s, new.limit_s),
        )
        self._run("INSERT INTO body VALUES (?, ?)", (n, new.body))
        self._sizes[n] = len(new.body)
        self._bytes += len(new.body)
        return Waiting(n, new.key, None if new.limit_s is None else came_s + new.limit_s)

    def renew(self, n: int, correlation: bytes | None) -> None:
        """Return other correlation data with the reply."""
        self._run("UPDATE job SET correlation = ? WHERE n = ?", (correlation, n))

    def cancel(self, n: int) -> None:
        """Remember that a job is cancelled."""
        self._run("UPDATE job SET cancelled = 1 WHERE n = ?", (n,))

    def begin(self, n: int) -> int:
        """Begin an attempt to answer a job, and return its number; commit before the job can end the process."""
        attempt = self.next_attempt()
        self._run("UPDATE job SET state = 'running', attempt = ? WHERE n = ?", (attempt, n))
        return attempt

    def release(self, n: int) -> None:
        """Have a begun job wait again; the attempt does not count."""
        self._run("UPDATE job SET state = 'queued' WHERE n = ?", (n,))

    def finish(self, n: int, attempt: int, payload: bytes, *, keep: bool, deliver: bool = True) -> None:
        """End a job.

        Args:
            n: The job.
            attempt: Number of the attempt.
            payload: Its reply.
            keep: Keep it in the record, so that it answers a repetition; otherwise that is a new job.
            deliver: Put it into the outbox.
        """
        if deliver:
            self._run(
                "INSERT INTO outbox SELECT ?, reply_to, sender, id, ?, correlation, ?, ? FROM job WHERE n = ?",
                (self._number(), attempt, n if keep else None, None if keep else payload, n),
            )
            self._unsent += 1
        if keep:
            done_s = self._clock.now()
            self._run("UPDATE job SET state = 'answered', final = ?, done_s = ? WHERE n = ?", (payload, done_s, n))
            self._answers[n] = (len(payload), done_s)
            self._answer_bytes += len(payload)
        else:
            self._run("DELETE FROM job WHERE n = ?", (n,))
        self._run("DELETE FROM body WHERE n = ?", (n,))
        self._bytes -= self._sizes.pop(n, 0)

    def drop(self, n: int) -> None:
        """Remove an answered job from the record; its reply, if it has not left, stays in the outbox."""
        self._run(
            "UPDATE outbox SET payload = (SELECT final FROM job WHERE n = outbox.job), job = NULL WHERE job = ?", (n,)
        )
        self._run("DELETE FROM job WHERE n = ?", (n,))
        self._answer_bytes -= self._answers.pop(n, (0, 0.0))[0]

    # The outbox.

    def reply(self, after: int) -> Reply | None:
        """Return the first reply in the outbox whose number is greater than this."""
        row = self._run(
            "SELECT n, reply_to, sender, id, attempt, correlation,"
            " coalesce(payload, (SELECT final FROM job WHERE job.n = outbox.job))"
            " FROM outbox WHERE n > ? ORDER BY n LIMIT 1",
            (after,),
        ).fetchone()
        return None if row is None else Reply(row[0], JobKey(*row[1:4]), *row[4:])

    def sent(self, n: int) -> None:
        """Remove a reply from the outbox."""
        self._unsent -= self._run("DELETE FROM outbox WHERE n = ?", (n,)).rowcount

    # Inside.

    def _one(self, where: str, *values: object) -> Job | None:
        row = self._run(f"{_JOB} WHERE {where}", values).fetchone()
        if row is None:
            return None
        *first, suspect, deaths, cancelled, final, body = row[4:]
        job = Job(*[row[0], JobKey(*row[1:4]), *first, bool(suspect), deaths, bool(cancelled), final, body])
        if job.final is not None and self._is_old(job.n):
            self.drop(job.n)
            return None
        return job

    def _run(self, statement: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise _store_error(self._path, error) from error

    def _number(self) -> int:
        # Not SQLite's, which would use the last number again once its row is deleted.
        self._last += 1
        return self._last

    def _is_old(self, n: int) -> bool:
        return n in self._answers and self._clock.now() - self._answers[n][1] > self._limits.answer_s

    def _trim(self) -> None:
        while self._answers:
            oldest = next(iter(self._answers))
            full = len(self._answers) > self._limits.answers or self._answer_bytes > self._limits.answer_bytes
            if not (full or self._is_old(oldest)):
                return
            self.drop(oldest)

    def _update_meta(self) -> None:
        moment = self._clock.moment()
        if self._attempt < self._reserved and abs(moment.seconds - self._seen.seconds) < _SEEN_EVERY_S:
            return
        self._reserved = self._attempt + _RESERVED_ATTEMPTS
        self._seen = moment
        self._run(
            "INSERT OR REPLACE INTO meta VALUES (1, ?, ?, ?, ?)",
            (moment.boot, moment.seconds, moment.wall_s, self._reserved),
        )

    def _count(self) -> None:
        """Count what is stored, at the start and after a transaction that failed."""
        self._sizes = dict(self._run("SELECT n, length(body) FROM body"))
        self._bytes = sum(self._sizes.values())
        self._answers = OrderedDict(
            (n, (size, done_s))
            for n, size, done_s in self._run(
                "SELECT n, length(final), done_s FROM job WHERE state = 'answered' ORDER BY done_s, n"
            )
        )
        self._answer_bytes = sum(size for size, _ in self._answers.values())
        self._deadly = {
            digest for (digest,) in self._db.execute("SELECT digest FROM job WHERE deaths >= ?", (MAX_DEATHS,))
        }
        ((self._unsent,),) = self._run("SELECT count(*) FROM outbox")

    def _open(self) -> sqlite3.Connection:
        if self._path is not None:
            # Prompts and answers are private. SQLite gives its log the permissions of the file.
            try:
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            except OSError as error:
                raise StoreError(f"{self._path} cannot be opened: {error.strerror}") from error
        db = sqlite3.connect(self._path or ":memory:", isolation_level=None, timeout=LOCK_WAIT_S)
        try:
            self._prepare(db)
        except sqlite3.OperationalError as error:
            # The disk is full, or another process has the file open.
            db.close()
            raise _store_error(self._path, error) from error
        except sqlite3.DatabaseError as error:
            db.close()
            raise _DamagedError(self._path, str(error)) from error
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        # One process only: a second one would answer the same jobs.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")  # on macOS a sync alone does not reach the disk
        db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        ((version,),) = db.execute("PRAGMA user_version")
        if version not in (0, _VERSION):
            raise _DamagedError(self._path, f"it is of version {version}, and this edgekit writes {_VERSION}")
        for (problem,) in db.execute("PRAGMA quick_check(1)"):
            if problem != "ok":
                raise _DamagedError(self._path, str(problem))
        if version == 0:
            # One transaction: a crash leaves all of it or nothing.
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        self._db = db
        self._resume()

    def _resume(self) -> None:
        """Take over what an earlier process left."""
        db, now = self._db, self._clock.moment()
        with closing(db.execute("SELECT boot, seen_s, wall_s, attempt FROM meta")) as rows:
            stored = rows.fetchone()
        self._seen = now if stored is None else Moment(*stored[:3])
        self._reserved = 0 if stored is None else int(stored[3])
        self._attempt = max(self._reserved, time.time_ns() // 1_000_000)
        shift_s = self._seen.seconds_at_boot(now)
        db.execute("BEGIN IMMEDIATE")
        if shift_s:
            db.execute("UPDATE job SET came_s = came_s - ?, done_s = done_s - ?", (shift_s, shift_s))
            db.execute("UPDATE meta SET boot = ?, seen_s = ?, wall_s = ?", (now.boot, now.seconds, now.wall_s))
            self._seen = now
        ((running,),) = db.execute("SELECT count(*) FROM job WHERE state = 'running'")
        if running:
            db.execute(
                "UPDATE job SET state = 'queued', suspect = 1, deaths = deaths + ? WHERE state = 'running'",
                (int(running == 1),),
            )
        db.execute("COMMIT")
        ((self._last,),) = db.execute(
            "SELECT max(coalesce((SELECT max(n) FROM job), 0), coalesce((SELECT max(n) FROM outbox), 0))"
        )
        self._count()


class _DamagedError(Exception):
    def __init__(self, path: Path | None, reason: str) -> None:
        super().__init__(reason)
        self.path = path or Path(":memory:")


def _store_error(path: Path | None, error: sqlite3.Error) -> StoreError:
    return StoreError(f"{path or 'the store'} cannot be used: {error}", hint="is the disk full?")
