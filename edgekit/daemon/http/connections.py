"""Limits on HTTP connections: how many there are, and how long each may keep the server waiting.

uvicorn limits neither: a client that sends its headers or its body slowly, or does not read the answer, keeps a
connection, its memory and a file descriptor for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import resource
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from edgekit.config import HttpConfig
from edgekit.daemon.rare_log import LOG_INTERVAL_S, RareLog
from edgekit.errors import ConfigError

__all__ = ["Connections"]

logger = logging.getLogger(__name__)

HEADER_S = 10.0
"""Time for the headers of a request, from the connection or from the first byte after the last reply."""
BODY_SILENT_S = 10.0
"""Longest time without data in a request's body."""
BODY_S = 120.0
"""Time for a request's body."""
KEEP_ALIVE_S = 120
"""Time without a request after a reply: longer than clients and proxies keep idle connections for the next one.

A request that a client sends while the server closes is lost, and clients do not send a POST again. They close first
if they keep connections for less: httpx 5 s, undici 4 s, Node.js's agent 5 s, aiohttp 15 s, nginx and AWS's load
balancers 60 s, Go 90 s.
"""
STALLED_S = 60.0
"""Longest time in which a client reads nothing of what was written to it."""
_SLOW_HANDSHAKE_S = 2.0
"""After this time a TLS handshake makes room before idle connections do."""
_PROBE_AGAIN_S = 0.1
# File descriptors for everything but HTTP connections.
_RESERVED_FILES = 128

_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class _Handshake:
    """A connection that has been accepted, and whose TLS handshake has not ended."""

    socket: socket.socket
    address: str
    since: float


class Connections:
    """The open connections of one server; everything runs on its event loop.

    Args:
        config: The maximum number of connections, and the proxies, which have many clients' connections.

    Raises:
        ConfigError: A trusted proxy is not an address.
    """

    def __init__(self, config: HttpConfig) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max = config.max_connections
        if files != resource.RLIM_INFINITY:
            self._max = max(8, min(self._max, files - _RESERVED_FILES))
        # In proportion: with half, one client alone would have all of the places that are left.
        self._max_per_client = max(1, config.max_connections_per_client * self._max // config.max_connections)
        self._proxies = tuple(_network(address) for address in config.trusted_proxies)
        self._open: set[_Protocol] = set()
        self._per_client: Counter[str] = Counter()
        # By file descriptor. asyncio tells of a connection only after its handshake.
        self._handshakes: dict[int, _Handshake] = {}
        self._log = RareLog(logger)
        _uvicorn.addFilter(_rare_warnings)

    def protocol(self, *args: Any, **kwargs: Any) -> asyncio.Protocol:
        """Return the protocol of a new connection, for uvicorn's `http` setting."""
        return _Protocol(self, *args, **kwargs)

    def check(self) -> None:
        """Close connections whose time is over; call it about once a second."""
        now = time.monotonic()
        for connection in [*self._open]:
            connection.check(now)
        self._forget_closed()

    def accepted(self, connection: socket.socket, client: str) -> None:
        """Count a connection that begins a TLS handshake; at a limit, another one of the client or of all makes room.

        If none can, it may still end its handshake, to be told that it is refused.
        """
        self._forget_closed()
        theirs = sum(one.address == client for one in self._handshakes.values())
        crowded = self._per_client[client] + theirs >= self._max_per_client and not self._is_proxy(client)
        if crowded or len(self._open) + len(self._handshakes) >= self._max:
            whose = client if crowded else None
            self._end_handshake(whose, _SLOW_HANDSHAKE_S) or self._push_out(whose) or self._end_handshake(whose, 0.0)
        self._handshakes[connection.fileno()] = _Handshake(connection, client, time.monotonic())

    def add(self, connection: _Protocol, client: str) -> bool:
        """Record a new connection, after its handshake, and return whether it is served."""
        self._handshakes.pop(connection.fileno, None)
        crowded = self._per_client[client] >= self._max_per_client and not self._is_proxy(client)
        full = len(self._open) >= self._max
        if (crowded and not self._push_out(client)) or (full and not crowded and not self._push_out(None)):
            self._log.warning(
                f"http: refused a connection: {self._per_client[client]} of {len(self._open)} are {client}'s"
            )
            return False
        self._open.add(connection)
        self._per_client[client] += 1
        return True

    def _push_out(self, client: str | None) -> bool:
        """Close the connection that has been idle longest since a reply; returns whether there was one.

        Args:
            client: Whose; None is anyone's.
        """
        idle = [one for one in self._open if one.idle and client in (None, one.address)]
        if not idle:
            return False
        longest = min(idle, key=lambda one: one.since)
        # It is no longer counted, and so must not wait for its client.
        self.remove(longest, longest.address)
        longest.close_at_once()
        return True

    def _end_handshake(self, client: str | None, at_least_s: float) -> bool:
        """End the handshake that has taken longest; returns whether there was one.

        Args:
            client: Whose; None is anyone's.
            at_least_s: How long it must have taken.
        """
        handshakes = [(one.since, fd) for fd, one in self._handshakes.items() if client in (None, one.address)]
        since, fd = min(handshakes, default=(time.monotonic(), -1))
        if fd < 0 or time.monotonic() - since < at_least_s:
            return False
        with contextlib.suppress(OSError):
            # asyncio owns the socket: it closes it on the end of the data.
            self._handshakes[fd].socket.shutdown(socket.SHUT_RDWR)
        del self._handshakes[fd]
        self._log.warning(f"http: ended a TLS handshake of {client or 'a client'}: there are too many connections")
        return True

    def _forget_closed(self) -> None:
        for fd in [fd for fd, one in self._handshakes.items() if one.socket.fileno() < 0]:
            del self._handshakes[fd]

    def _is_proxy(self, client: str) -> bool:
        # A Unix socket has no addresses.
        return bool(self._proxies and client) and any(
            ipaddress.ip_address(client) in network for network in self._proxies
        )

    def remove(self, connection: _Protocol, client: str) -> None:
        """Forget a connection."""
        if connection in self._open:
            self._open.remove(connection)
            self._per_client[client] -= 1
            if not self._per_client[client]:
                del self._per_client[client]

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an error that no task handles: asyncio logs each accept that fails, thousands in a second."""
        if "accept()" in context.get("message", ""):
            self._log.warning(f"http: cannot accept connections: {context.get('exception')}")
        else:
            loop.default_exception_handler(context)


def _network(address: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(address)
    except ValueError as error:
        raise ConfigError(f"`http.trusted_proxies`: {error}", hint="use addresses or networks") from error


class _RareWarnings(logging.Filter):
    """Passes each of uvicorn's warnings at most once in a while: any client can cause them."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        now = time.monotonic()
        if now < self._next.get(record.msg, 0.0):
            return False
        self._next[record.msg] = now + LOG_INTERVAL_S
        return True


_uvicorn = logging.getLogger("uvicorn.error")
_rare_warnings = _RareWarnings()


class _Protocol(H11Protocol):
    """uvicorn's protocol with the limits."""

    def __init__(self, owner: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._owner = owner
        self.address = ""
        self.fileno = -1
        self._served = True
        # Since when the headers or the body are awaited, and when the last data came.
        self.since = self._last_data = time.monotonic()
        self._silent = True
        self._replied = False
        self._half_closed = False
        self._unwritten = 0
        self._unwritten_since = self.since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn declares it
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self.fileno = sock.fileno()
        # A dict of this connection's own; each request's `scope["state"]` is a copy of it.
        self.app_state = {**self.app_state, "unix": sock is not None and sock.family == socket.AF_UNIX}
        self._served = self._owner.add(self, self.address)
        if not self._served:
            transport.write(_REFUSAL)
            self.close_at_once()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.remove(self, self.address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._served:
            return
        self._last_data = time.monotonic()
        waited_for_headers = self.conn.their_state is h11.IDLE
        if waited_for_headers and self._silent:
            self.since = self._last_data
        self._silent = False
        super().data_received(data)
        if waited_for_headers and self.conn.their_state is not h11.IDLE:
            self.since = self._last_data

    def eof_received(self) -> bool | None:  # type: ignore[override]  # uvicorn's returns None always
        """Keep the connection for the reply if the request is complete: the client may have closed its half only."""
        # TLS has no half-closed connections.
        plain = self.scheme != "https"
        self._half_closed = plain and self._replying and self.conn.their_state in {h11.DONE, h11.MUST_CLOSE}
        if self._half_closed:
            # A stream finds out whether the client is still there with its keep-alives.
            self.scope["state"]["half_closed"] = True
            self._probe()
            self.loop.call_later(_PROBE_AGAIN_S, self._probe)
        return self._half_closed

    def on_response_complete(self) -> None:
        self.since, self._silent, self._replied = time.monotonic(), True, True
        super().on_response_complete()
        if self._half_closed:
            self.transport.close()

    def shutdown(self) -> None:
        """Close it after its reply, once: a second time, a TLS transport forgets what it is part of."""
        if not self.transport.is_closing():
            super().shutdown()

    def close_at_once(self) -> None:
        """Close it without waiting for the client: what cannot be sent now is lost."""
        # Not only `abort`: TLS then tells the client that this is the end.
        self.transport.close()
        self.transport.abort()

    @property
    def idle(self) -> bool:
        """Whether its reply has left, and nothing has come since; `since` is then the time of that."""
        return self._awaiting and not self.transport.is_closing() and not self.transport.get_write_buffer_size()

    @property
    def _awaiting(self) -> bool:
        """Whether it has had a reply, perhaps still unsent, and has sent nothing since."""
        return self._replied and self._silent and not self._replying

    @property
    def _replying(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def check(self, now: float) -> None:
        """Close the connection if its time is over."""
        unwritten = self.transport.get_write_buffer_size()
        if unwritten != self._unwritten or not unwritten:
            self._unwritten, self._unwritten_since = unwritten, now
        if now - self._unwritten_since > STALLED_S:
            logger.info("http: closed a connection whose client does not read")
            self.transport.abort()
        elif not self.transport.is_closing():
            self._check_request(now)

    def _check_request(self, now: float) -> None:
        state = self.conn.their_state
        if self._awaiting and self._unwritten:
            self.since = now
        elif state is h11.IDLE and not self._replying:
            if now - self.since > (KEEP_ALIVE_S if self.idle else HEADER_S):
                self._time_out()
        elif state is h11.SEND_BODY and not self.flow.read_paused:
            if now - self._last_data > BODY_SILENT_S or now - self.since > BODY_S:
                self._time_out()
        else:
            self._probe()

    def _probe(self) -> None:
        """Find out whether a half-closed client is still there: if not, the second write fails, which cancels."""
        waits = self._half_closed and self._replying and not self.cycle.response_started
        if waits and self.scope["http_version"] == "1.1" and not self.transport.is_closing():
            self.transport.write(_CONTINUE)

    def _time_out(self) -> None:
        if not self._silent and not (self._replying and self.cycle.response_started):
            self.transport.write(_TIMEOUT)
        self.transport.close()
