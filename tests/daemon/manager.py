"""The other end of NOTIFY_SOCKET."""

from __future__ import annotations

import socket
import time


class Manager:
    """A service manager that only listens, on a real datagram socket."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self.socket.settimeout(10)

    def receive(self) -> str:
        return self.socket.recv(4096).decode()

    def count(self, line: str, seconds: float) -> int:
        """How often `line` comes within `seconds`."""
        found, end = 0, time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                found += line in self.receive().splitlines()
            except TimeoutError:
                break
        self.socket.settimeout(10)
        return found

    def close(self) -> None:
        self.socket.close()
