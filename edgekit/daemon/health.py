"""The watchdog's feeder: it vouches for the loop that decodes, not for itself.

A thread of its own would happily feed a watchdog while generation hangs, so it feeds only as long as the
scheduler's heart has beaten recently and it has not given up. It does not know what a heartbeat is made of.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from edgekit.daemon.notify import Notifier

__all__ = ["Watchdog"]

logger = logging.getLogger(__name__)


class Watchdog:
    """Feeds the service manager's watchdog while the heart beats.

    Args:
        heartbeat_age: Seconds since the decoding loop last made a step or looked at its queue.
        notify: Where to feed.
        failed: Whether generation was given up, which no beat mends.
        interval_s: Seconds between two looks; half the manager's own limit unless given.
        limit_s: A heart that has been silent for longer is taken for dead; the manager's limit unless given.
            The process is killed at the latest `limit_s` plus the manager's limit after the last beat.
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
        self._heartbeat_age = heartbeat_age
        self._notify = notify
        self._failed = failed
        self._interval_s = interval_s if interval_s is not None else (notify.watchdog_s or 0.0) / 2
        self._limit_s = limit_s if limit_s is not None else (notify.watchdog_s or 30.0)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def healthy(self) -> bool:
        """Whether the heart has beaten within the limit, and nothing was given up; what `/healthz` answers."""
        return self._trouble() is None

    def start(self) -> None:
        """Begin to feed; does nothing where nobody watches."""
        if self._thread is not None or not self._interval_s or not self._notify.listening:
            return
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop feeding. Call it after the last step: a drain that takes long is still alive."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None

    def _trouble(self) -> str | None:
        if self._failed():
            return "generation has failed"
        age = self._heartbeat_age()
        return None if age <= self._limit_s else f"generation has not moved for {age:.0f} s"

    def _run(self) -> None:
        silent = False
        while True:
            trouble = self._trouble()
            if trouble is None:
                self._notify.alive()
                if silent:
                    logger.warning("generation moves again")
                silent = False
            elif not silent:
                logger.error("%s; the watchdog is no longer fed", trouble)
                self._notify.status(trouble)
                silent = True
            if self._stop.wait(self._interval_s):
                return
