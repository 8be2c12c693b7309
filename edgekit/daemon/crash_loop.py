"""Breaking a crash loop where the service manager cannot.

launchd restarts a job that died for ever, only ever `ThrottleInterval` apart. On a Mac a killed process can
leak wired memory, so each restart makes the next one likelier to die. The daemon therefore writes down its
starts; after too many that did not end well it exits with status 0, which the plist's KeepAlive takes as an
end. systemd has StartLimitBurst and needs none of this.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["CrashLoop"]

logger = logging.getLogger(__name__)


class CrashLoop:
    """Counts starts that were not followed by a clean end.

    Args:
        path: File to keep them in; its folder exists.
        limit: Starts within the window that are taken for a loop.
        window_s: Seconds.
        now: The clock, seconds since the epoch.
    """

    def __init__(
        self, path: Path, *, limit: int = 5, window_s: float = 900.0, now: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._limit = limit
        self._window_s = window_s
        self._now = now

    def enter(self) -> bool:
        """Note a start, and return whether to go on; False means that this is a loop.

        Saying False forgets the starts, so that the user's next start is taken for what it is.
        """
        now = self._now()
        recent = [start for start in self._read() if 0 <= now - start <= self._window_s]
        if len(recent) >= self._limit:
            logger.error("started %d times in %.0f minutes; not again", len(recent), self._window_s / 60)
            self.leave()
            return False
        self._write([*recent, now])
        return True

    def leave(self) -> None:
        """Note a clean end."""
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
            self._path.write_text("".join(f"{start:.0f}\n" for start in starts), encoding="ascii")
        except OSError as error:
            # A full disk is no reason not to serve.
            logger.warning("%s cannot be written: %s", self._path, error)
