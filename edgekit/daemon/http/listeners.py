"""The sockets that the HTTP server listens on: TCP and Unix."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError, EdgekitError

__all__ = ["Listener", "UnixListener", "is_private", "listen_error", "listen_tcp", "resolve"]

_CHECK_HOST = "check `http.host` (--host)"
_BACKLOG = 128
# The kernel's limit is 108 bytes with the NUL, 104 on macOS.
_MAX_PATH_BYTES = 103
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_IN_A_ROW = 32


class Listener(socket.socket):
    """A listening socket for asyncio, which accepts up to 2048 connections in a row.

    It goes on after an error for which it waits a second, so that each attempt fails, is logged and begins a wait of
    its own; and it does so before the connections that are closed meanwhile give back their file descriptors. This one
    says that there are no more connections after each error, and after a few connections; if there are, the event
    loop comes back at once.

    Attributes:
        on_accept: Called with each connection and its address before anything else is done with it; None calls nothing.
    """

    on_accept: Callable[[socket.socket, str], None] | None = None
    _left = _IN_A_ROW

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises:
            BlockingIOError: There is none, or others are to be handled first.
            OSError: The process may open no more files, for example.
        """
        if self._left <= 0:
            self._left = _IN_A_ROW
            raise BlockingIOError
        self._left -= 1
        try:
            connection, address = super().accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._left = 0
            raise
        if self.on_accept is not None:
            self.on_accept(connection, address[0] if isinstance(address, tuple) else "")
        return connection, address


def resolve(host: str, port: int) -> tuple[Any, ...]:
    """Return what `getaddrinfo` says first about an address to listen on.

    Raises:
        ConfigError: It is not an address.
        EdgekitError: `address_unavailable`: the name is not known, perhaps only yet.
    """
    try:
        return socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except UnicodeError as error:
        raise ConfigError(f"cannot listen on `{host}`: {error}", hint=_CHECK_HOST) from error
    except OSError as error:
        # At boot the name may be unknown only because the network is not up.
        raise _unavailable(f"cannot listen on `{host}`: {error.strerror or error}", hint=_CHECK_HOST) from error


def is_private(found: tuple[Any, ...]) -> bool:
    """Whether only this machine reaches a resolved address."""
    return ipaddress.ip_address(str(found[4][0]).partition("%")[0]).is_loopback


def listen_tcp(found: tuple[Any, ...], host: str, port: int) -> Listener:
    """Return a listening socket.

    Args:
        found: From `resolve`.
        host: For messages.
        port: For messages.

    Raises:
        ConfigError: The account may not use the port, or the system has no such addresses.
        EdgekitError: `address_unavailable`: the address is in use, or not one of this machine yet.
    """
    family, kind, protocol, _, address = found
    try:
        listener = Listener(family, kind, protocol)
    except OSError as error:
        raise listen_error(host, port, error) from error
    try:
        # A restart must not wait for the last run's connections to time out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise listen_error(host, port, error) from error
    listener.setblocking(False)  # noqa: FBT003
    return listener


class UnixListener:
    """A listening Unix socket, whose file is removed with it.

    Args:
        path: The socket's path; a socket that no program listens on any more is replaced.
        mode: Its permissions.

    Raises:
        ConfigError: The path is too long, or something else is there, or the account may not create it.
        EdgekitError: `address_unavailable`: another program listens on it, or its folder does not exist yet.
    """

    def __init__(self, path: Path, mode: int) -> None:
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise ConfigError(f"`http.socket` {path} is longer than {_MAX_PATH_BYTES} bytes", hint="use a shorter path")
        self._path = path
        _remove_stale(path)
        self.socket = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.bind(str(path))
            self._made = _identity(path)
            # Before it listens, so that no connection is made with other permissions.
            path.chmod(mode)
            self.socket.listen(_BACKLOG)
        except OSError as error:
            self.socket.close()
            raise _unix_error(path, error) from error
        self.socket.setblocking(False)  # noqa: FBT003

    def close(self) -> None:
        """Close the socket and remove its file, unless another one has taken its place."""
        with contextlib.suppress(OSError):
            if _identity(self._path) == self._made:
                self._path.unlink()
        self.socket.close()


def _identity(path: Path) -> tuple[int, int]:
    """Return what tells a file from a later one of the same name; inodes are used again, and modes change."""
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(
                f"`http.socket`: {path} exists and is not a socket", hint="remove it, or name another path"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(5)
            probe.connect(str(path))
    except (FileNotFoundError, NotADirectoryError):
        return
    except ConnectionRefusedError:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    except OSError as error:
        raise _unix_error(path, error) from error
    raise _unavailable(f"another program listens on {path}", hint="stop it, or choose another `http.socket`")


def _unix_error(path: Path, error: OSError) -> EdgekitError:
    message = f"cannot listen on {path}: {error.strerror or error}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return ConfigError(message, hint="under systemd: `http.socket: $RUNTIME_DIRECTORY/http.sock`")
    return _unavailable(message, hint="check `http.socket`")


def listen_error(host: str, port: int, error: OSError) -> EdgekitError:
    """Return the error for an address that cannot be listened on."""
    message = f"cannot listen on {host} port {port}: {error.strerror}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(message, hint="choose an `http.port` (--port) above 1023" if port < 1024 else None)
    if error.errno == errno.EAFNOSUPPORT:
        return ConfigError(message, hint=_CHECK_HOST)
    if error.errno == errno.EADDRINUSE:
        return _unavailable(message, hint="choose another `http.port` (--port), or stop what uses this one")
    return _unavailable(message, hint=f"{_CHECK_HOST}: is it an address of this machine?")


def _unavailable(message: str, *, hint: str) -> EdgekitError:
    """An error that may mend itself: the daemon waits for it at the start, and is restarted after it."""
    return EdgekitError(message, hint=hint, code="address_unavailable")
