"""How many requests a client may have open while others want places, and its weight in the queue."""

from __future__ import annotations

import threading

import pytest

from edgekit.errors import UnavailableError
from edgekit.generation.engine.fair_queue import FairQueue
from edgekit.generation.engine.queue_places import QueuePlaces
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.types import ChatRequest, Failure, Finished, Message
from tests.generation.tiny import echo_model


def test_a_client_with_twice_the_share_gets_twice_the_tokens() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(12):
        queue.push(f"a{number}", client="a", cost=100, share=2.0)
        queue.push(f"b{number}", client="b", cost=100)
    first = [queue.pop()[0] for _ in range(12)]
    assert (first.count("a"), first.count("b")) == (8, 4)


def test_a_client_leaves_the_last_eighth_of_the_places_to_others() -> None:
    places = QueuePlaces()
    for _ in range(14):
        places.take("a", 1.0)
    assert places.limit("a", 1.0, 16) == 14
    assert places.limit("b", 1.0, 16) == 16
    places.take("b", 1.0)
    assert places.limit("b", 1.0, 16) == 16
    for _ in range(14):
        places.give_back("a")
    assert (places.limit("a", 1.0, 16), places.of("a"), len(places._clients)) == (16, 0, 1)


def test_a_larger_share_is_a_larger_part_of_the_places() -> None:
    places = QueuePlaces()
    for _ in range(10):
        places.take("a", 1.0)
        places.take("b", 8.0)
    # Of 16 places and shares of 1, 8 and 1 (for a newcomer), a's part is 1.6 and b's 12.8.
    assert (places.limit("a", 1.0, 16), places.limit("b", 8.0, 16)) == (14, 16)


def test_few_places_are_not_kept_for_others() -> None:
    places = QueuePlaces()
    for _ in range(6):
        places.take("a", 1.0)
    assert places.limit("a", 1.0, 7) == 7


def test_a_flood_of_one_key_leaves_a_place_for_another_and_says_when_to_return() -> None:
    release = threading.Event()
    worker = EngineWorker(echo_model(before_step=lambda _: release.wait(60)), max_queue=15)
    ended: list[object] = []
    changed = threading.Condition()

    def receive(event: object) -> None:
        if isinstance(event, Finished | Failure):
            with changed:
                ended.append(event)
                changed.notify_all()

    def submit(client: str, number: int) -> None:
        worker.submit(ChatRequest(f"{client}{number}", (Message("user", "Hi"),), client=client, max_tokens=4), receive)

    try:
        for number in range(14):
            submit("flood", number)
        with pytest.raises(UnavailableError) as caught:
            submit("flood", 14)
        assert caught.value.code == "overloaded"
        assert "14 of them of this client" in caught.value.message
        submit("other", 0)
        submit("other", 1)
        # All places are taken now: the flood must wait for three to end, the newcomer for one.
        waits = {}
        for client in ("third", "flood"):
            with pytest.raises(UnavailableError) as caught:
                submit(client, 99)
            waits[client] = caught.value.retry_after_s
        assert waits["flood"] > waits["third"]
        release.set()
        with changed:
            assert changed.wait_for(lambda: len(ended) == 16, timeout=60)
        assert all(isinstance(event, Finished) for event in ended)
        # Every place has been given back.
        assert not worker._places._clients
    finally:
        release.set()
        worker.stop()
