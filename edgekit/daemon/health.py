"""Feeds the service manager's watchdog as long as every thread of the daemon makes progress.

A thread that fed unconditionally would hide a hang: this one first checks the heartbeats of the generation loop and of
what `watch` added, and that generation has not failed for good.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from edgekit.daemon.notify import Notifier

__all__ = ["Watchdog"]

logger = logging.getLogger(__name__)


class Watchdog:
    """Feeds the watchdog while all heartbeats are recent.

    Args:
        heartbeat_age: Returns the seconds since the generation loop last completed a step or polled its queue.
        notify: Notifies the service manager.
        failed: Returns whether generation has failed for good.
        interval_s: Seconds between two checks; half the service manager's timeout unless given.
        limit_s: Age of a heartbeat above which its thread counts as stalled; the service manager's timeout unless
            given. The process is killed at most `limit_s` plus that timeout after the last heartbeat.
    """

    def __init__(
        self,
        heartbeat_age: Callable[[], float],
        notify: Notifier,
        *,
        failed: Callable[[], bool] = lambda: False,
        interval_s: float | None = None,
        limit_s: float | None = None,
    ) -> None:
        self._ages: dict[str, Callable[[], float]] = {"generation": heartbeat_age}
        self._notify = notify
        self._failed = failed
        self._interval_s = interval_s if interval_s is not None else (notify.watchdog_s or 0.0) / 2
        self._limit_s = limit_s if limit_s is not None else (notify.watchdog_s or 30.0)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, name: str, age: Callable[[], float]) -> None:
        """Check another thread too.

        Args:
            name: What stalls with it, for messages.
            age: Returns the seconds since it last made progress; 0 while it need not.
        """
        self._ages = {**self._ages, name: age}

    @property
    def healthy(self) -> bool:
        """Whether nothing is stalled, and generation has not failed; `/healthz` reports it."""
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """What is stalled or has failed; None if the daemon is healthy."""
        if self._failed():
            return "generation has failed"
        for name, age in self._ages.items():
            seconds = age()
            if seconds > self._limit_s:
                return f"{name} has been stalled for {seconds:.0f} s"
        return None

    def start(self) -> None:
        """Start feeding; does nothing without a watchdog."""
        if self._thread is not None or not self._interval_s or not self._notify.listening:
            return
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop feeding. Call it after the last step: a long drain is still healthy."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None

    def _run(self) -> None:
        unhealthy = False
        while True:
            problem = self.problem
            if problem is None:
                self._notify.alive()
                if unhealthy:
                    logger.warning("every thread makes progress again")
                unhealthy = False
            elif not unhealthy:
                logger.error("%s; the watchdog is no longer fed", problem)
                self._notify.status(problem)
                unhealthy = True
            if self._stop.wait(self._interval_s):
                return
