"""The listening socket, as asyncio uses it."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket

import pytest

from edgekit.daemon.http.listeners import Listener, listen_tcp, resolve

pytestmark = pytest.mark.serial


def accepted(listener: Listener, stack: contextlib.ExitStack) -> int:
    """Accept until there are no more connections; returns how many."""
    for count in range(1000):
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return count
        stack.enter_context(connection)
    raise AssertionError


def test_few_connections_are_accepted_in_a_row_and_one_attempt_is_made_without_files() -> None:
    told: list[str] = []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen_tcp(resolve("127.0.0.1", 0), "127.0.0.1", 0))
        listener.on_accept = lambda _, address: told.append(address)
        for _ in range(40):
            stack.enter_context(socket.create_connection(listener.getsockname(), timeout=20))
        assert (accepted(listener, stack), accepted(listener, stack)) == (32, 8)
        assert told == ["127.0.0.1"] * 40
        stack.enter_context(socket.create_connection(listener.getsockname(), timeout=20))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(OSError, match="open files") as caught:
                listener.accept()
            with pytest.raises(BlockingIOError):
                listener.accept()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert caught.value.errno == errno.EMFILE
        assert accepted(listener, stack) == 1
