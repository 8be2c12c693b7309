"""Keeps the C library from hoarding memory. It knows glibc; elsewhere it does nothing."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["limit_arenas"]

_M_ARENA_MAX = -8  # malloc.h


def limit_arenas(count: int = 2) -> bool:
    """Let all threads allocate from a few arenas instead of eight for each processor.

    An arena keeps the most that was ever allocated from it. The doors prepare requests on dozens of threads, so that
    many arenas would each come to hold what the largest request took: memory that grows for hours. Call it before
    there are threads.

    Returns:
        Whether the C library took it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, count))
