"""Keeps web pages away from a door that listens on loopback, and gives every exchange an id.

Any page a browser has open can send requests to 127.0.0.1, and one whose name is rebound to 127.0.0.1 can read the
replies. Both show: by a foreign `Origin`, or by a `Host` that is not this machine.
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.daemon.http.errors import error_response
from edgekit.errors import EdgekitError, RequestError

__all__ = ["Guard", "is_loopback"]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Guard:
    """ASGI middleware around the whole application.

    Args:
        loopback: Whether the door listens on loopback only; then only its names are good as `Host`.
    """

    def __init__(self, app: ASGIApp, *, loopback: bool) -> None:
        self._app = app
        self._loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on, with `scope["state"]["request_id"]` set."""
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        error = self._problem(headers)
        app = self._app if error is None else error_response(error)
        await app(scope, receive, send_with_id)

    def _problem(self, headers: Headers) -> EdgekitError | None:
        host = headers.get("host", "")
        if self._loopback and not is_loopback(_name(f"//{host}")):
            return RequestError(
                f"this daemon answers on loopback only, not as `{host[:100]}`",
                hint="use http://127.0.0.1, or open it with --host",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return RequestError(
                f"web pages of `{origin[:100]}` may not use this daemon",
                hint="call it from a program, or through a proxy of that site",
                code="origin_not_allowed",
            )
        return None


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
