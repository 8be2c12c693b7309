"""Runs one request on one model without a queue or a thread: for the command line and for tests."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from edgekit.errors import EdgekitError
from edgekit.generation.engine.engine import Engine
from edgekit.generation.engine.request_state import RequestState
from edgekit.generation.model import TextModel
from edgekit.generation.types import ChatRequest, Event, Failure, Finished

__all__ = ["generate"]


def generate(
    model: TextModel,
    request: ChatRequest,
    *,
    engine: Engine | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Answer a request; the stream ends with exactly one `Finished` or `Failure`.

    Closing the iterator early, or Ctrl-C in it, leaves the model ready for the next request.

    Args:
        model: Not used elsewhere meanwhile.
        request: The request.
        engine: An idle engine on this model, with its prefix cache; None creates one.
        cancelled: Asked before each step; once it returns True, the stream ends with the reason `cancelled`.
    """
    events: deque[Event] = deque()
    try:
        state = RequestState(model.prepare(request), events.append, submitted=time.monotonic())
    except EdgekitError as error:
        yield Failure(error)
        return
    engine = engine or Engine(model)
    engine.add(state)
    try:
        while True:
            while events:
                event = events.popleft()
                yield event
                if isinstance(event, Finished | Failure):
                    return
            if cancelled():
                state.cancelled = True
                engine.sweep()
            else:
                engine.step()
    finally:
        state.cancelled = True
        engine.sweep()
