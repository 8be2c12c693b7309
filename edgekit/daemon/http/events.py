"""Passes the events of one request from the worker's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import Receive, Scope

from edgekit.daemon.http.batch import Cancellable
from edgekit.errors import RequestError
from edgekit.generation.types import ChoiceFinished, Event, Failure, Finished, ToolCallDelta

__all__ = ["Events"]

# Proxies and clients close a connection that is idle for longer.
_KEEP_ALIVE_S = 15.0
# A client that has closed its half may be gone: writing tells.
_HALF_CLOSED_KEEP_ALIVE_S = 1.0

MAX_WAITING_BYTES = 4 << 20
"""Size of the events that wait for a client that reads too slowly."""

# Memory of a token's log probability, and of each alternative to it.
_LOGPROB_BYTES = 256


class Events:
    """A queue between two threads; create it on the event loop.

    Attributes:
        bounded: Whether a client that reads too slowly fails its request; not if nothing is sent before the end.
        state: The request, to cancel it if the client disconnects; None until it is submitted.
    """

    def __init__(self) -> None:
        self.bounded = False
        self._waiting_bytes = 0
        self._overflowed = False
        self.state: Cancellable | None = None
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Add an event, from any thread.

        Raises:
            RuntimeError: The loop is closed; the worker then cancels the request, as it should.
        """
        self._loop.call_soon_threadsafe(self._put, event)

    def _put(self, event: Event) -> None:
        last = isinstance(event, Finished | Failure)
        if self._overflowed and not last:
            return
        if self._overflowed:
            event = Failure(
                RequestError(
                    f"more than {MAX_WAITING_BYTES >> 20} MiB of the answer were waiting to be read",
                    hint="read the stream faster",
                    code="client_too_slow",
                )
            )
        self._waiting_bytes += _size(event)
        self._events.put_nowait(event)
        if self.bounded and not last and self._waiting_bytes > MAX_WAITING_BYTES:
            self._overflowed = True
            if self.state:
                self.state.cancel()

    async def until_over(self, scope: Scope, receive: Receive) -> AsyncGenerator[Event | None, None]:
        """Yield the events up to the last, and None when a keep-alive is due; cancel if the client disconnects."""
        disconnected = asyncio.ensure_future(_disconnected(receive))
        state = scope.get("state", {})
        quiet_since = self._loop.time()
        tick_s = min(_HALF_CLOSED_KEEP_ALIVE_S, _KEEP_ALIVE_S)
        try:
            while True:
                event = asyncio.ensure_future(self._events.get())
                try:
                    await asyncio.wait({event, disconnected}, timeout=tick_s, return_when=asyncio.FIRST_COMPLETED)
                    if event.done():
                        self._waiting_bytes -= _size(event.result())
                        quiet_since = self._loop.time()
                        yield event.result()
                        if isinstance(event.result(), Finished | Failure):
                            return
                    elif disconnected.done():
                        return
                    else:
                        after_s = _HALF_CLOSED_KEEP_ALIVE_S if state.get("half_closed") else _KEEP_ALIVE_S
                        if self._loop.time() - quiet_since >= after_s:
                            quiet_since = self._loop.time()
                            yield None
                finally:
                    event.cancel()
        finally:
            disconnected.cancel()
            if self.state:
                self.state.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _size(event: Event) -> int:
    """Return roughly how much memory an event takes."""
    if isinstance(event, ToolCallDelta):
        return 200 + len(event.arguments)
    if isinstance(event, ChoiceFinished | Finished | Failure):
        return 200
    return 200 + len(event.text) + sum(_LOGPROB_BYTES * (1 + len(item.top)) for item in event.logprobs)
