"""Accepted requests that wait for their turn: their senders take turns."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable

from edgekit.daemon.job_types import Waiting

__all__ = ["Backlog"]


class Backlog:
    """Requests in the order in which they are begun.

    Those that were running when the daemon ended come first. Of the others each sender has one begun in turn, its
    oldest; without a name, a reply topic counts as a sender.
    """

    def __init__(self, jobs: Iterable[Waiting] = ()) -> None:
        self._jobs: dict[int, Waiting] = {}
        self._suspects: deque[int] = deque()
        self._turns: OrderedDict[str, deque[int]] = OrderedDict()
        self._due: list[tuple[float, int]] = []
        for job in jobs:
            self.add(job)

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Waiting, *, first: bool = False) -> None:
        """Append a request, or put it before the others of its sender."""
        self._jobs[job.n] = job
        line = self._suspects if job.suspect else self._turns.setdefault(job.key.sender or job.key.reply_to, deque())
        if first:
            line.appendleft(job.n)
        else:
            line.append(job.n)
        if job.due_s is not None:
            heapq.heappush(self._due, (job.due_s, job.n))

    def remove(self, n: int) -> None:
        """Remove a request, if it waits."""
        self._jobs.pop(n, None)

    def next_due_s(self) -> float | None:
        """When the next deadline of a waiting request passes, by the boot clock; None without one."""
        while self._due and self._due[0][1] not in self._jobs:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def take_late(self, now: float) -> Waiting | None:
        """Remove and return a request whose deadline has passed."""
        due_s = self.next_due_s()
        if due_s is None or due_s > now:
            return None
        return self._jobs.pop(heapq.heappop(self._due)[1])

    def has_suspect(self) -> bool:
        """Whether a request waits that was running when the daemon ended."""
        while self._suspects and self._suspects[0] not in self._jobs:
            self._suspects.popleft()
        return bool(self._suspects)

    def take(self) -> Waiting | None:
        """Remove and return the next request."""
        if self.has_suspect():
            return self._jobs.pop(self._suspects.popleft())
        while self._turns:
            sender, line = self._turns.popitem(last=False)
            while line:
                job = self._jobs.pop(line.popleft(), None)
                if job is not None:
                    if line:
                        self._turns[sender] = line
                    return job
        return None
