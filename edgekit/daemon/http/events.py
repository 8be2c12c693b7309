"""The events of one request, carried from the scheduler's thread to the event loop. It knows no dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import Receive

from edgekit.generation.request import Event, Failure, Finish
from edgekit.generation.scheduler import Ticket

__all__ = ["Events"]

# Proxies and clients give up on a connection that is silent for longer.
_KEEP_ALIVE_S = 15.0


class Events:
    """A queue between two threads; made on the event loop.

    Attributes:
        ticket: What to cancel if the client goes away; None until the scheduler has taken the request.
    """

    def __init__(self) -> None:
        self.ticket: Ticket | None = None
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Take an event; any thread."""
        # Raises once the loop is closed, which cancels the request: right, nobody listens.
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def until_over(self, receive: Receive) -> AsyncGenerator[Event | None, None]:
        """Yield the events to the last, and None where keep-alive is due; cancel if the client goes away."""
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            while True:
                event = asyncio.ensure_future(self._events.get())
                try:
                    await asyncio.wait({event, gone}, timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                    if event.done():
                        yield event.result()
                        if isinstance(event.result(), Finish | Failure):
                            return
                    elif gone.done():
                        return
                    else:
                        yield None
                finally:
                    event.cancel()
        finally:
            gone.cancel()
            if self.ticket:
                self.ticket.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
