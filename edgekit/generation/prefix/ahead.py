"""Reads blocks from disk ahead of who puts them back, on a thread of its own.

Reading and hashing leave the interpreter free. One thread is enough: a second one brought nothing that could be
measured. Whoever waits, waits with a limit: a disk that hangs holds up the reader, never a request.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from edgekit.generation.prefix.disk import DiskStore

__all__ = ["ReadAhead"]

# Blocks held ready.
_READY = 4


class ReadAhead:
    """Blocks of a chain, in order; close it in any case.

    Args:
        store: Where they are.
        keys: Which.
    """

    def __init__(self, store: DiskStore, keys: Sequence[bytes]) -> None:
        self._stop = threading.Event()
        self._ready: queue.Queue[bytes | None] = queue.Queue(_READY)
        # A daemon thread: one that hangs in the system must not hold up the end of the process.
        threading.Thread(target=self._read, args=(store, keys), name="prefix-reader", daemon=True).start()

    def close(self) -> None:
        """Stop the thread; if it is inside a read, it ends after it."""
        self._stop.set()

    def next(self, timeout_s: float) -> bytes | None:
        """Return the next block; None if it is not held any more, or does not come in time: nothing follows then."""
        try:
            return self._ready.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _read(self, store: DiskStore, keys: Sequence[bytes]) -> None:
        for key in keys:
            block = store.get(key)
            while not self._stop.is_set():
                try:
                    self._ready.put(block, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if block is None or self._stop.is_set():
                return
