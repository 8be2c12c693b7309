"""Passes the events of one request from the worker's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
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
        # What the loop has not taken over yet, and whether it is going to.
        self._arrived: deque[Event] = deque()
        self._scheduled = False
        self._events: deque[Event] = deque()
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> bool:
        """Whether another event can be had at once; what is written for this one may go along with that."""
        return bool(self._events)

    def put(self, event: Event) -> None:
        """Add an event, from any thread.

        Raises:
            RuntimeError: The loop is closed; the worker then cancels the request, as it should.
        """
        self._arrived.append(event)
        if self._scheduled:
            return
        # Before the call: the loop may be faster. Waking it up is a system call, and events often come together.
        self._scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._take)
        except RuntimeError:
            self._scheduled = False
            raise

    def _take(self) -> None:
        # Before the events are taken: one that arrives later has this called again.
        self._scheduled = False
        while self._arrived:
            self._put(self._arrived.popleft())
        self._changed.set()

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
        self._events.append(event)
        if self.bounded and not last and self._waiting_bytes > MAX_WAITING_BYTES:
            self._overflowed = True
            if self.state:
                self.state.cancel()

    async def until_over(self, scope: Scope, receive: Receive) -> AsyncGenerator[Event | None, None]:
        """Yield the events up to the last, and None when a keep-alive is due; cancel if the client disconnects."""
        disconnected = asyncio.ensure_future(_disconnected(receive))
        disconnected.add_done_callback(lambda _: self._changed.set())
        state = scope.get("state", {})
        quiet_since = self._loop.time()
        tick_s = min(_HALF_CLOSED_KEEP_ALIVE_S, _KEEP_ALIVE_S)
        try:
            while True:
                if self._events:
                    event = self._events.popleft()
                    self._waiting_bytes -= _size(event)
                    quiet_since = self._loop.time()
                    yield event
                    if isinstance(event, Finished | Failure):
                        return
                elif disconnected.done():
                    return
                elif not await self._wait(tick_s):
                    after_s = _HALF_CLOSED_KEEP_ALIVE_S if state.get("half_closed") else _KEEP_ALIVE_S
                    if self._loop.time() - quiet_since >= after_s:
                        quiet_since = self._loop.time()
                        yield None
        finally:
            disconnected.cancel()
            if self.state:
                self.state.cancel()

    async def _wait(self, timeout_s: float) -> bool:
        """Wait until there are events or the client has disconnected; returns False after `timeout_s`."""
        self._changed.clear()
        # Half of what `asyncio.wait_for` costs, which makes a task; this runs for each token.
        timer = self._loop.call_later(timeout_s, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()
        return self._loop.time() < timer.when()


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
