"""Breaks a crash loop under launchd, which restarts a crashed job forever, at intervals of `ThrottleInterval`.

On a Mac a killed process can leak wired memory, so each restart makes the next crash likelier. The daemon therefore
records its starts; after too many without a clean exit it exits with status 0, which the plist's KeepAlive does not
restart. systemd has StartLimitBurst for this.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["CrashLoop"]

logger = logging.getLogger(__name__)


class CrashLoop:
    """Counts starts without a clean exit.

    Args:
        path: File that records the starts; its folder is made if it is missing.
        limit: Number of starts within the window that count as a crash loop.
        window_s: Length of the window in seconds.
        now: The clock, in seconds since the epoch.
    """

    def __init__(
        self, path: Path, *, limit: int = 5, window_s: float = 900.0, now: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._limit = limit
        self._window_s = window_s
        self._now = now

    def enter(self) -> bool:
        """Record a start, and return whether to continue; False means a crash loop.

        Returning False clears the record, so that the next start, by the user, succeeds.
        """
        now = self._now()
        recent = [start for start in self._read() if 0 <= now - start <= self._window_s]
        if len(recent) >= self._limit:
            logger.error("crash loop: started %d times in %.0f minutes; giving up", len(recent), self._window_s / 60)
            self.leave()
            return False
        self._write([*recent, now])
        return True

    def leave(self) -> None:
        """Record a clean exit."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", self._path, error)

    def _read(self) -> list[float]:
        try:
            return [float(line) for line in self._path.read_text(encoding="ascii").split()[-100:]]
        except (OSError, ValueError):
            return []

    def _write(self, starts: list[float]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("".join(f"{start:.0f}\n" for start in starts), encoding="ascii")
        except OSError as error:
            # A full disk must not keep the daemon from serving.
            logger.warning("%s cannot be written: %s", self._path, error)
