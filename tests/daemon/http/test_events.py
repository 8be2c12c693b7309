"""Events pass from the worker's thread to the event loop: each once, in order, and without a lost wake-up."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from edgekit.daemon.http.events import Events
from edgekit.errors import RequestError
from edgekit.generation.types import Delta, Failure

_END = Failure(RequestError("the end"))


async def _never() -> Any:
    await asyncio.Event().wait()


def test_every_event_of_several_threads_arrives_once_and_in_its_threads_order() -> None:
    async def run() -> list[Any]:
        events = Events()
        count, senders = 400, 3
        together = threading.Barrier(senders)

        def send(sender: int) -> None:
            together.wait()
            for number in range(count):
                events.put(Delta(number, f"{number}", index=sender))

        def send_all() -> None:
            threads = [threading.Thread(target=send, args=(sender,)) for sender in range(senders)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            events.put(_END)

        last = threading.Thread(target=send_all)
        last.start()
        found = [event async for event in events.until_over({"type": "http"}, _never) if event is not None]
        last.join()
        for sender in range(senders):
            texts = [event.text for event in found[:-1] if isinstance(event, Delta) and event.index == sender]
            assert texts == [str(number) for number in range(count)]
        return found

    assert asyncio.run(asyncio.wait_for(run(), 60))[-1] is _END


def test_events_that_come_together_wake_the_loop_once() -> None:
    async def run() -> None:
        events = Events()
        loop, wakes = asyncio.get_running_loop(), []
        call = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args, **options: wakes.append(call(*args, **options))  # type: ignore[assignment,method-assign]
        for text in "abc":
            events.put(Delta(0, text))
        events.put(_END)
        found = [event async for event in events.until_over({"type": "http"}, _never)]
        assert [event.text for event in found if isinstance(event, Delta)] == ["a", "b", "c"]
        assert len(wakes) == 1

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_client_that_disconnects_while_nothing_comes_ends_them() -> None:
    async def run() -> list[Any]:
        gone = asyncio.Event()

        async def receive() -> dict[str, str]:
            await gone.wait()
            return {"type": "http.disconnect"}

        events = Events()
        events.put(Delta(0, "a"))
        found = []
        async for event in events.until_over({"type": "http"}, receive):
            found.append(event)
            gone.set()
        return found

    assert asyncio.run(asyncio.wait_for(run(), 60)) == [Delta(0, "a")]


def test_a_closed_loop_is_reported_to_the_worker_each_time() -> None:
    async def make() -> Events:
        return Events()

    events = asyncio.run(make())
    for _ in range(2):
        with pytest.raises(RuntimeError):
            events.put(Delta(0, "a"))
