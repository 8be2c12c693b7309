"""A thread that prepares requests, so that a long chat does not keep the connection waiting."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Preparation"]

_log = logging.getLogger(__name__)


class Preparation:
    """Runs tasks one after the other, in order."""

    def __init__(self) -> None:
        self._tasks: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._busy_since: float | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="edgekit-mqtt-preparation", daemon=True)
        self._thread.start()

    def add(self, task: Callable[[], None]) -> None:
        """Append a task; any thread may call this."""
        with self._changed:
            self._tasks.append(task)
            self._changed.notify()

    def seconds_since_heartbeat(self) -> float:
        """Seconds for which the current task has been running; 0 without one."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def stop(self, timeout_s: float) -> None:
        """Drop the tasks that have not begun, and wait for the current one; it is abandoned if it takes longer."""
        with self._changed:
            self._stopping = True
            self._tasks.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or self._stopping)
                if self._stopping:
                    return
                task = self._tasks.popleft()
                self._busy_since = time.monotonic()
            try:
                task()
            except Exception:  # noqa: BLE001 - the thread's outermost handler; a task reports its own errors
                _log.exception("mqtt: preparing a request failed")
            finally:
                self._busy_since = None
