"""Keeps the C library from hoarding memory. It knows glibc; elsewhere it does nothing."""

from __future__ import annotations

import ctypes
import platform
import threading

__all__ = ["Trimmer", "limit_arenas"]

_M_ARENA_MAX = -8  # malloc.h


def limit_arenas(count: int = 2) -> bool:
    """Let all threads allocate from a few arenas instead of eight for each processor.

    An arena keeps the most that was ever allocated from it. The doors prepare requests on dozens of threads, so that
    many arenas would each come to hold what the largest request took: memory that grows for hours. Call it before
    there are threads.

    Returns:
        Whether the C library took it.
    """
    library = _glibc()
    return library is not None and bool(library.mallopt(_M_ARENA_MAX, count))


class Trimmer:
    """Gives the system back what the C library has kept of freed memory, every so often.

    Left alone it keeps what a burst took, in pieces between what is still in use: after hours under load that is a
    good part of the process, though nothing leaks.

    Args:
        every_s: Seconds between two times.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; harmless where there is nothing to be done."""
        library = _glibc()
        if library is not None:
            self._thread = threading.Thread(target=self._run, args=(library,), name="trim", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End; harmless if it was not started."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, library: ctypes.CDLL) -> None:
        while not self._stopping.wait(self._every_s):
            # ctypes lets other threads run meanwhile; the allocator makes them wait for milliseconds at most.
            library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
