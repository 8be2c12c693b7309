"""What the first caller would wait for, done before there is one. It knows neither models nor grammars."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from edgekit.errors import EdgekitError

__all__ = ["Preparation"]

logger = logging.getLogger(__name__)

_QUIET_S = 0.5
# Longer than it takes; a thread that is left behind ends with the process.
_JOIN_S = 10.0


class Preparation:
    """Does one piece of work in the background, as soon as nobody is being answered.

    It holds the interpreter for up to a second at a time, so running answers go first. A lower priority would not do:
    who holds the interpreter and is not run keeps all others from it.

    Args:
        prepare: The work; it may be done by somebody else meanwhile, who needs it at once.
        busy: Whether somebody is being answered.
    """

    def __init__(self, prepare: Callable[[], None], busy: Callable[[], bool]) -> None:
        self._prepare = prepare
        self._busy = busy
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="preparation", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give up what has not begun, and wait for what has; harmless if it was not started."""
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
            # Whoever needs it will be told so.
            logger.info("not prepared: %s", error.message)
        except Exception:
            logger.exception("the preparation failed")
