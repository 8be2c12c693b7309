"""Runs preparatory work in the background, so that the first request does not wait for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from edgekit.errors import EdgekitError

__all__ = ["Warmup"]

logger = logging.getLogger(__name__)

_QUIET_S = 0.5
# More than the work takes; a thread left behind ends with the process.
_JOIN_S = 10.0


class Warmup:
    """Runs one function in the background, once no requests are running.

    The function may hold the GIL for up to a second at a time, so running requests go first. A lower thread priority
    would not help: a thread that holds the GIL and is not scheduled blocks all others.

    Args:
        prepare: The function; a request that needs the result sooner may compute it concurrently.
        busy: Returns whether requests are running.
    """

    def __init__(self, prepare: Callable[[], None], busy: Callable[[], bool]) -> None:
        self._prepare = prepare
        self._busy = busy
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="warmup", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Skip the work if it has not begun, else wait for it; does nothing if not started."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while self._busy():
            if self._stopping.wait(_QUIET_S):
                return
        try:
            self._prepare()
        except EdgekitError as error:
            # A request that needs it reports the error.
            logger.info("warm-up failed: %s", error.message)
        except Exception:
            logger.exception("warm-up failed")
