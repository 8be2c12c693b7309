"""Keeps the log file of a launchd job small, because launchd never rotates the file that it opened for a job.

newsyslog could only rename the file, into which launchd and the job would go on writing. So the job cuts it: the newest
part stays in the same file, for which no permission in its folder is needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LogFile"]

logger = logging.getLogger(__name__)

_MIB = 1 << 20


class LogFile:
    """Cuts the file behind a descriptor, if it is a regular file, when it exceeds a limit.

    Args:
        descriptor: The log's descriptor, open for writing.
        max_bytes: Size above which it is cut.
        keep_bytes: Size of the newest part, which stays.
        interval_s: Seconds between two looks at the size.
    """

    def __init__(
        self, descriptor: int = 2, *, max_bytes: int = 10 * _MIB, keep_bytes: int = 2 * _MIB, interval_s: float = 60.0
    ) -> None:
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._keep_bytes = keep_bytes
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed = False

    def start(self) -> None:
        """Start watching the size; does nothing if the log is no regular file."""
        if self._thread is not None or not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return
        # Otherwise the first write after a cut would leave a hole as large as the old file.
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="log-file", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def cut(self) -> bool:
        """Cut the file if it is too large; return whether it was."""
        with _no_logging():
            if os.fstat(self._descriptor).st_size <= self._max_bytes:
                return False
            newest = self._newest()
            os.ftruncate(self._descriptor, 0)
            while newest:
                newest = newest[os.write(self._descriptor, newest) :]
        logger.info("the log was cut to its newest part")
        return True

    def _newest(self) -> bytes:
        """The last lines of the file; nothing if this account may not read it."""
        try:
            reader = os.open(_path_of(self._descriptor), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return b""
        with os.fdopen(reader, "rb") as file:
            if not os.path.samestat(os.fstat(file.fileno()), os.fstat(self._descriptor)):
                return b""
            file.seek(-self._keep_bytes, os.SEEK_END)
            return file.read(self._keep_bytes).partition(b"\n")[2]

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._try_to_cut()

    def _try_to_cut(self) -> None:
        try:
            self.cut()
        except OSError as error:
            # Once, since the line makes the file longer; a full disk may have room later.
            if not self._failed:
                logger.warning("the log file cannot be cut: %s", error.strerror)
            self._failed = True


def _path_of(descriptor: int) -> bytes | str:
    """The path of an open file."""
    get_path = getattr(fcntl, "F_GETPATH", None)  # macOS
    if get_path is None:
        return os.fspath(Path(f"/proc/self/fd/{descriptor}").readlink())
    return fcntl.fcntl(descriptor, get_path, bytes(1024)).rstrip(b"\0")


@contextlib.contextmanager
def _no_logging() -> Iterator[None]:
    """Let other threads wait with their log lines, so that none is lost between reading and cutting."""
    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.acquire()
    try:
        yield
    finally:
        for handler in handlers:
            handler.release()
