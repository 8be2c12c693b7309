"""Notifies the service manager of the daemon's state: the sd_notify protocol over `$NOTIFY_SOCKET`.

Source: sd_notify(3). Datagrams of `KEY=value` lines; a socket name that starts with `@` is in the abstract namespace.
Without a service manager every call does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from edgekit.errors import escape_controls

__all__ = ["Notifier"]

logger = logging.getLogger(__name__)


class Notifier:
    """Sends notifications to the service manager named in the environment.

    Args:
        env: Environment with `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`; the process's own unless given.
    """

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        env = os.environ if env is None else env
        name = env.get("NOTIFY_SOCKET", "")
        # Other address families (vsock) only serve virtual machines, whose PID 1 relays the notifications.
        self._address = ("\0" + name[1:] if name.startswith("@") else name) if name[:1] in {"@", "/"} else ""
        self._watchdog_s = _watchdog_s(env)

    @property
    def listening(self) -> bool:
        """Whether there is a service manager to notify."""
        return bool(self._address)

    @property
    def watchdog_s(self) -> float | None:
        """The watchdog's timeout: `alive` must be called at least this often; None without a watchdog."""
        return self._watchdog_s if self._address else None

    def ready(self, status: str = "") -> None:
        """Report that start-up is complete."""
        self.send("READY=1", *_status(status))

    def status(self, text: str) -> None:
        """Report the current state in one line, which `systemctl status` shows."""
        self.send(*_status(text))

    def alive(self) -> None:
        """Feed the watchdog."""
        self.send("WATCHDOG=1")

    def extend(self, seconds: float, status: str = "") -> None:
        """Request `seconds` from now to finish starting or stopping; repeat to extend further."""
        self.send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", *_status(status))

    def stopping(self, status: str = "") -> None:
        """Report that shutdown has begun."""
        self.send("STOPPING=1", *_status(status))

    def send(self, *lines: str) -> bool:
        """Send `lines` as one datagram, and return whether it was delivered.

        A failure is only logged: the daemon works without a service manager.
        """
        if not self._address or not lines:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as sock:
                # The service manager may be busy; never block a thread of the daemon for it.
                sock.settimeout(1.0)
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            logger.warning("cannot notify the service manager of %s: %s", lines[0], error)
            return False
        return True


def _status(text: str) -> tuple[str, ...]:
    # A newline would start another assignment.
    return (f"STATUS={escape_controls(' '.join(text.split()))}",) if text else ()


def _watchdog_s(env: Mapping[str, str]) -> float | None:
    microseconds = env.get("WATCHDOG_USEC", "")
    owner = env.get("WATCHDOG_PID", "")
    if not microseconds.isascii() or not microseconds.isdigit() or int(microseconds) == 0:
        return None
    # Inherited from a parent process, which is the watched one.
    return None if owner and owner != str(os.getpid()) else int(microseconds) / 1e6
