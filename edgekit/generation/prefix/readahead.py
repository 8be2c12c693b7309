"""Reads blocks from disk ahead of their use, on a separate thread.

Reading and hashing release the GIL. One thread is enough: a second one made no measurable difference. The consumer
waits with a timeout: a hanging disk blocks this thread, never a request.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from edgekit.generation.prefix.disk import DiskStore

__all__ = ["ReadAhead"]

# Blocks read ahead.
_DEPTH = 4


class ReadAhead:
    """Blocks of a chain, in order; it must be closed.

    Args:
        store: The store to read from.
        keys: Keys of the blocks.
    """

    def __init__(self, store: DiskStore, keys: Sequence[bytes]) -> None:
        self._stop = threading.Event()
        self._ready: queue.Queue[bytes | None] = queue.Queue(_DEPTH)
        # A daemon thread: if it hangs in a system call, the process can still exit.
        threading.Thread(target=self._read, args=(store, keys), name="prefix-reader", daemon=True).start()

    def close(self) -> None:
        """Stop the thread, after the current read."""
        self._stop.set()

    def next(self, timeout_s: float) -> bytes | None:
        """Return the next block; None, and no further blocks, if it is gone or was not read in time."""
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
