"""Limits how much freed memory glibc's malloc keeps; does nothing with other C libraries."""

from __future__ import annotations

import ctypes
import platform
import threading

__all__ = ["Trimmer", "limit_arenas", "trim"]

_M_ARENA_MAX = -8  # malloc.h


def limit_arenas(count: int = 2) -> bool:
    """Limit malloc to `count` arenas for all threads; the default is eight per processor.

    An arena keeps the memory of its peak. Requests are prepared on dozens of threads, so with many arenas each would
    grow to the size of the largest request, over hours. Call it before starting threads.

    Returns:
        Whether the C library applied the limit.
    """
    library = _glibc()
    return library is not None and bool(library.mallopt(_M_ARENA_MAX, count))


def trim() -> None:
    """Return freed memory to the system with `malloc_trim`; does nothing with other C libraries."""
    library = _glibc()
    if library is not None:
        # ctypes releases the GIL; threads that allocate wait for the allocator, milliseconds at most.
        library.malloc_trim(0)


class Trimmer:
    """Returns freed memory to the system periodically, with `trim`.

    Otherwise malloc keeps the memory of a burst, fragmented between blocks still in use: after hours under load that
    is much of the process, although nothing leaks.

    Args:
        interval_s: Seconds between two trims.
    """

    def __init__(self, interval_s: float = 10.0) -> None:
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; does nothing without glibc."""
        if _glibc() is not None:
            self._thread = threading.Thread(target=self._run, name="trim", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread, if it was started."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            trim()


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
