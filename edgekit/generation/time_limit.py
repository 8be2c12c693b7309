"""A time limit that work checks between its steps: a thread cannot be interrupted from outside."""

from __future__ import annotations

import time

from edgekit.errors import RequestError

__all__ = ["UNLIMITED", "TimeLimit"]


class TimeLimit:
    """The time that a request may take to prepare, from now on.

    Args:
        seconds: How long; None means for ever.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._until = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        """Raise `preparation_timeout` if the time is over."""
        if self._until is not None and time.monotonic() > self._until:
            raise RequestError(
                f"preparing the request took longer than {self._seconds:g} s",
                hint="shorten the messages, or simplify tools and schema",
                code="preparation_timeout",
            )


UNLIMITED = TimeLimit(None)
