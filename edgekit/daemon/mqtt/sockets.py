"""Waiting on sockets, and waking the thread that waits."""

from __future__ import annotations

import logging
import math
import select
import socket
import threading
from typing import Any

__all__ = ["Waker", "close_quietly", "poll", "readable"]

_log = logging.getLogger(__name__)


class Waker:
    """Wakes a thread that is in `poll` on `reader`; any thread may call `wake`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = False
        self.reader, self._writer = socket.socketpair()
        self.reader.settimeout(0)

    def wake(self) -> None:
        """Make `reader` readable; harmless after `close`."""
        with self._lock:
            if not self._sent and self._writer.fileno() >= 0:
                self._sent = True
                self._writer.send(b"\0")

    def drain(self) -> None:
        """Consume the wake-up, so that the next `poll` waits again."""
        with self._lock:
            if self._sent:
                self.reader.recv(16)
                self._sent = False

    def close(self) -> None:
        """Close both sockets."""
        with self._lock:
            self.reader.close()
            self._writer.close()


def poll(timeout_s: float, *, read: tuple[Any, ...] = (), write: Any = None) -> None:
    """Wait for any of these sockets. The system call is poll, because select takes no file descriptor above 1,023."""
    poller = select.poll()
    for sock in read:
        poller.register(sock, select.POLLIN)
    if write is not None:
        poller.register(write, select.POLLIN | select.POLLOUT)
    poller.poll(max(0, math.ceil(timeout_s * 1000)))


def readable(sock: Any) -> bool:
    """Whether bytes wait in a socket now."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))


def close_quietly(sock: Any) -> None:
    """Close a socket, if it is not None; an error is only logged."""
    if sock is not None:
        try:
            sock.close()
        except OSError:
            _log.debug("mqtt: closing a socket failed", exc_info=True)
