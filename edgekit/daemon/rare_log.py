"""Warnings that a client can cause as often as it likes, logged once in a while."""

from __future__ import annotations

import logging
import time

__all__ = ["LOG_INTERVAL_S", "RareLog"]

LOG_INTERVAL_S = 10.0
"""Seconds between two lines."""


class RareLog:
    """Logs at most one line in a while, with the number of those left out.

    Args:
        logger: Receives the lines.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._next = 0.0
        self._left_out = 0

    def warning(self, message: str) -> None:
        """Log a line, or count it."""
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        self._logger.warning("%s%s", message, f" ({self._left_out} times more)" if self._left_out else "")
        self._next, self._left_out = now + LOG_INTERVAL_S, 0
