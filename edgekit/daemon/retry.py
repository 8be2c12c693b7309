"""Retries a step of the start that fails with a transient error.

Such are an address that the network does not have yet, a port that another process still holds, and a bundle on a
medium that is not mounted yet. systemd gives up after five failed starts in ten minutes (StartLimitBurst), and at boot
five starts take half a minute. So the daemon itself waits, for so long that the limit is never reached: five times
`LIMIT_S` is ten minutes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from edgekit.daemon.notify import Notifier
from edgekit.errors import EdgekitError

__all__ = ["LIMIT_S", "TRANSIENT", "StoppedError", "retry"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

LIMIT_S = 120.0
"""Time after which the step fails; the service manager then restarts the daemon."""
_PAUSE_S = 2.0

TRANSIENT = frozenset({"address_unavailable", "bundle_missing"})
"""Codes of transient errors."""


class StoppedError(Exception):
    """The daemon was stopped meanwhile."""


def retry(
    attempt: Callable[[], T],
    stopping: threading.Event,
    notify: Notifier,
    *,
    limit_s: float = LIMIT_S,
    pause_s: float = _PAUSE_S,
) -> T:
    """Call `attempt` until it succeeds, and return its result.

    Args:
        attempt: Raises an `EdgekitError` with a code of `TRANSIENT` if it is to be retried.
        stopping: Ends the wait.
        notify: Told why the start takes longer.
        limit_s: Maximum time in seconds; 0 for no second attempt.
        pause_s: Seconds between two attempts.

    Raises:
        StoppedError: `stopping` was set.
        EdgekitError: The last attempt's error, or one that is not transient.
    """
    end = time.monotonic() + limit_s
    waiting = False
    while True:
        try:
            result = attempt()
        except EdgekitError as error:
            if error.code not in TRANSIENT or time.monotonic() + pause_s > end:
                raise
            if not waiting:
                logger.warning("%s; trying again for %.0f s", error.message, limit_s)
            waiting = True
            notify.extend(limit_s, f"waiting: {error.message}")
        else:
            if waiting:
                logger.info("this works now")
            return result
        if stopping.wait(pause_s):
            raise StoppedError
