"""Rejects requests of foreign web pages, and gives every request an id.

Any page open in a browser can send requests to 127.0.0.1, and a page whose host name is rebound to 127.0.0.1 (DNS
rebinding) can read the replies. The first shows by a foreign `Origin`, the second by a `Host` that is not this machine;
an address as `Host` shows that no name was rebound. A browser cannot connect to a Unix socket.
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.daemon.access.keys import redact
from edgekit.daemon.http.errors import error_response
from edgekit.errors import EdgekitError, RequestError

__all__ = ["OriginCheck", "is_loopback"]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class OriginCheck:
    """ASGI middleware around the whole application.

    Args:
        loopback: Whether the server listens on loopback only; `Host` must then be one of its names.
        allowed: Further names that `Host` may have; `*.` at the start stands for any subdomain. If the server does not
            listen on loopback only, and this is empty, any name is allowed.
        origins: Regular expression of the origins that are allowed besides the server's own.
    """

    def __init__(self, app: ASGIApp, *, loopback: bool, allowed: Sequence[str] = (), origins: str = r"(?!)") -> None:
        self._app = app
        self._origins = re.compile(f"(?i:{origins})")
        self._loopback = loopback
        self._allowed = frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on, with `scope["state"]["request_id"]` set."""
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        # An id that looks like a key would be logged.
        kept = _REQUEST_ID.fullmatch(given) and redact(given) == given
        request_id = given if kept else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        error = self._problem(headers, unix=scope["state"].get("unix", False))
        app = self._app if error is None else error_response(error)
        await app(scope, receive, send_with_id)

    def _problem(self, headers: Headers, *, unix: bool) -> EdgekitError | None:
        host = headers.get("host", "")
        if not unix and not self._allows(_name(f"//{host}")):
            return RequestError(
                f"host `{host[:100]}` is not allowed"
                + (": this daemon listens on loopback only" if self._loopback else ""),
                hint="use the address, such as http://127.0.0.1, or add the name to `http.allowed_hosts`",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower() and not self._origins.fullmatch(origin):
            return RequestError(
                f"requests from web pages of `{origin[:100]}` are not allowed",
                hint="add it to `http.allowed_origins`",
                code="origin_not_allowed",
            )
        return None

    def _allows(self, name: str) -> bool:
        if is_loopback(name) or not (self._loopback or self._allowed):
            return True
        name = name.lower()
        if name in self._allowed or f"*.{name.partition('.')[2]}" in self._allowed:
            return True
        return not self._loopback and _is_address(name)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _netloc(url: str) -> str | None:
    """Return the host and port of a URL; None if it is not one."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return None


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
