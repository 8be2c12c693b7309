"""Telling the service manager how we are: the sd_notify protocol over `$NOTIFY_SOCKET`.

Source: sd_notify(3). Datagrams of `KEY=value` lines; a socket name that starts with `@` lies in the abstract
namespace. Where no service manager listens, every call does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

__all__ = ["Notifier"]

logger = logging.getLogger(__name__)


class Notifier:
    """Sends states to the service manager named in the environment.

    Args:
        env: Holds `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`; this process's own unless given.
    """

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        env = os.environ if env is None else env
        name = env.get("NOTIFY_SOCKET", "")
        # Other families (vsock) are for virtual machines, where PID 1 relays; we are never PID 1's peer there.
        self._address = ("\0" + name[1:] if name.startswith("@") else name) if name[:1] in {"@", "/"} else ""
        self._watchdog_s = _watchdog_s(env)

    @property
    def listening(self) -> bool:
        """Whether there is a service manager to tell."""
        return bool(self._address)

    @property
    def watchdog_s(self) -> float | None:
        """Seconds within which `alive` must be called again and again; None where nobody watches."""
        return self._watchdog_s if self._address else None

    def ready(self, status: str = "") -> None:
        """Say that start-up is complete."""
        self.send("READY=1", *_status(status))

    def status(self, text: str) -> None:
        """Say in one line what is going on; `systemctl status` shows it."""
        self.send(*_status(text))

    def alive(self) -> None:
        """Feed the watchdog."""
        self.send("WATCHDOG=1")

    def extend(self, seconds: float, status: str = "") -> None:
        """Ask for `seconds` from now on to finish starting or stopping; ask again while it goes on."""
        self.send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", *_status(status))

    def stopping(self, status: str = "") -> None:
        """Say that shutdown has begun."""
        self.send("STOPPING=1", *_status(status))

    def send(self, *lines: str) -> bool:
        """Send `lines` as one datagram, and return whether it was delivered.

        A failure is logged and goes no further: that nobody hears must not stop what is being told.
        """
        if not self._address or not lines:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as sock:
                # The manager may be busy, but the decoding loop must never wait for it.
                sock.settimeout(1.0)
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            logger.warning("the service manager was not told %s: %s", lines[0], error)
            return False
        return True


def _status(text: str) -> tuple[str, ...]:
    # A newline would start another assignment.
    return (f"STATUS={' '.join(text.split())}",) if text else ()


def _watchdog_s(env: Mapping[str, str]) -> float | None:
    microseconds = env.get("WATCHDOG_USEC", "")
    owner = env.get("WATCHDOG_PID", "")
    if not microseconds.isascii() or not microseconds.isdigit() or int(microseconds) == 0:
        return None
    # Inherited from a parent that is the one being watched.
    return None if owner and owner != str(os.getpid()) else int(microseconds) / 1e6
