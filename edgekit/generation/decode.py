"""One answer from one model, without a queue and a thread: for the command line and for tests."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from edgekit.errors import EdgekitError
from edgekit.generation.engine import Engine
from edgekit.generation.model import TextModel
from edgekit.generation.request import ChatRequest, Event, Failure, Finish

__all__ = ["generate"]


def generate(model: TextModel, request: ChatRequest, *, engine: Engine | None = None) -> Iterator[Event]:
    """Answer a request; the stream ends with exactly one `Finish` or `Failure`.

    Closing the iterator early, or Ctrl-C in it, leaves the model ready for the next request.

    Args:
        model: Not used by anybody else meanwhile.
        request: What to answer.
        engine: Of this model, idle; it remembers what it has computed. A new one unless given.
    """
    events: deque[Event] = deque()
    try:
        ticket = model.ticket(request, events.append, submitted=time.monotonic())
    except EdgekitError as error:
        yield Failure(error)
        return
    engine = engine or Engine(model)
    engine.add(ticket)
    try:
        while True:
            while events:
                event = events.popleft()
                yield event
                if isinstance(event, Finish | Failure):
                    return
            engine.step()
    finally:
        ticket.cancelled = True
        engine.sweep()
