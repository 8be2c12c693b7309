from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import edgekit
from edgekit.api.reply import AsyncStream
from edgekit.generation.types import Event, Finished


class Submitting:
    """Submits a request in a thread, as `achat` does, which waits inside until it may go on."""

    def __init__(self, model: edgekit.Model, fail: bool) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()
        self.events: list[Event] = []
        self._model, self._fail = model, fail
        self._request = model._chat("hello", {"max_tokens": 240, "logit_bias": {"2": -100}})

    def __call__(self, on_event: Callable[[Event], None]) -> Callable[[], None]:
        self.began.set()
        assert self.may_end.wait(30)
        if self._fail:
            raise edgekit.RunnerError("it fails")

        def receive(event: Event) -> None:
            self.events.append(event)
            on_event(event)

        return self._model._submit(self._request, receive)

    def finish_reason(self) -> str:
        for _ in range(3000):
            if self.events and isinstance(self.events[-1], Finished):
                return self.events[-1].reason
            time.sleep(0.01)
        return "none"


async def cancelled(submitting: Submitting) -> list[dict[str, Any]]:
    """Cancel a task while its request is being submitted; returns the errors that asyncio reports as not handled."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    task = asyncio.ensure_future(AsyncStream.open(submitting))
    await asyncio.to_thread(submitting.began.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return reported


def test_a_task_that_is_cancelled_during_submission_cancels_the_request(model: edgekit.Model) -> None:
    async def ask() -> list[dict[str, Any]]:
        submitting = Submitting(model, fail=False)
        reported = await cancelled(submitting)
        submitting.may_end.set()
        assert await asyncio.to_thread(submitting.finish_reason) == "cancelled"
        return reported

    assert asyncio.run(ask()) == []


@pytest.mark.parametrize("ends", ["the submission fails", "the loop ends"])
def test_a_task_that_is_cancelled_during_submission_leaves_no_error_behind(model: edgekit.Model, ends: str) -> None:
    submitting = Submitting(model, fail=True)

    async def ask() -> list[dict[str, Any]]:
        reported = await cancelled(submitting)
        if ends == "the submission fails":
            submitting.may_end.set()
            await asyncio.sleep(0.2)
            gc.collect()
        else:
            # `asyncio.run` cancels what is left, and then waits for the thread.
            threading.Timer(0.2, submitting.may_end.set).start()
        return reported

    assert asyncio.run(ask()) == []
