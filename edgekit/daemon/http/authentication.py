"""ASGI middleware that finds out who sends a request, refuses those that may not, and writes the audit log.

The identity and the line of the audit log are in `scope["state"]`, as `identity` and `audit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.daemon.access.access import Access
from edgekit.daemon.access.audit import AuditRecord
from edgekit.daemon.access.identity import ANONYMOUS, Identity
from edgekit.daemon.http.errors import http_status
from edgekit.daemon.http.refusals import refusal
from edgekit.daemon.http.route_index import RouteIndex
from edgekit.daemon.metrics import Metrics
from edgekit.errors import EdgekitError

__all__ = ["Authentication"]

_MAX_SECRET_BYTES = 512
_HEADERS = (b"x-api-key", b"api-key")
_CLIENT_GONE = 499


class Authentication:
    """The middleware.

    Args:
        access: The keys and the audit log.
        metrics: Counts refused requests.
        required: Whether a key is required although none is configured.
        names: Returns the served model's name and aliases; empty while it loads.
        index: Tells which scope a path needs, and whose errors it has.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        metrics: Metrics,
        required: Callable[[], bool],
        names: Callable[[], Sequence[str]],
        index: RouteIndex,
    ) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics
        self._required = required
        self._names = names
        self._index = index

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Identify the sender and pass the request on, or refuse it."""
        method, path, state = scope["method"], scope["path"], scope["state"]
        address = scope["client"][0] if scope["client"] else ""
        record = AuditRecord(
            self._access.audit, "http", request_id=state["request_id"], what=f"{method} {path}", address=address
        )
        state["identity"], state["audit"] = ANONYMOUS, record
        needed = self._index.scope(method, path)
        if needed is None:
            # Probes are not in the audit log.
            await self._app(scope, receive, send)
            return
        status = _CLIENT_GONE

        async def send_with_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                record.identity = state["identity"] = self._identify(scope, address)
                state["identity"].check(needed, self._names())
            except EdgekitError as error:
                record.refused(error.code)
                self._metrics.refused("http", error)
                response = refusal(self._index.errors(path), error)
                if http_status(error) == 401:
                    MutableHeaders(raw=response.raw_headers)["WWW-Authenticate"] = 'Bearer realm="edgekit"'
                await response(scope, receive, send_with_status)
            else:
                await self._app(scope, receive, send_with_status)
        except Exception:
            status = 500
            raise
        finally:
            record.replied(status)

    def _identify(self, scope: Scope, address: str) -> Identity:
        return self._access.identify(_presented(scope["headers"]), address, required=self._required())


def _presented(headers: list[tuple[bytes, bytes]]) -> list[bytes]:
    """Return the keys of a request: of `Authorization: Bearer`, `x-api-key` (Anthropic) and `api-key` (Azure).

    What is no key is returned too, cut to a maximum length, so that it is refused as an invalid one.
    """
    presented = []
    for name, value in headers:
        if name == b"authorization":
            kind, _, rest = value.partition(b" ")
            presented.append(rest.strip() if kind.lower() == b"bearer" else value)
        elif name in _HEADERS:
            presented.append(value.strip())
    return [secret[:_MAX_SECRET_BYTES] for secret in presented[:4]]
