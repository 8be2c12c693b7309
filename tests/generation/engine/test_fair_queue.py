from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.engine.fair_queue import FairQueue


def test_the_smallest_priority_is_served_first_across_clients() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("late", client="a", cost=1, priority=5)
    queue.push("usual", client="a", cost=1)
    queue.push("urgent", client="a", cost=1, priority=-1)
    assert [queue.pop() for _ in range(3)] == ["urgent", "usual", "late"]


def test_a_client_that_requests_much_waits_behind_one_that_requests_little() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(4):
        queue.push(f"greedy{number}", client="greedy", cost=1000)
    for number in range(2):
        queue.push(f"modest{number}", client="modest", cost=10)
    assert list(queue) == ["greedy0", "modest0", "modest1", "greedy1", "greedy2", "greedy3"]


def test_a_new_client_does_not_pay_for_what_others_had_before() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(3):
        queue.push(f"a{number}", client="a", cost=100)
    assert queue.pop() == "a0"
    assert queue.pop() == "a1"
    queue.push("b0", client="b", cost=100)
    queue.push("b1", client="b", cost=100)
    assert [queue.pop() for _ in range(3)] == ["b0", "a2", "b1"]


def test_a_removed_request_is_not_served() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a", client="a", cost=1)
    queue.push("b", client="b", cost=1)
    queue.remove("a")
    assert (len(queue), queue.peek(), queue.pop(), queue.peek()) == (1, "b", "b", None)
    with pytest.raises(ValueError, match="not in the queue"):
        queue.remove("a")
    with pytest.raises(IndexError):
        queue.pop()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50), st.booleans()), max_size=60))
def test_each_client_keeps_its_order_and_shares_stay_fair(asked: list[tuple[int, int, bool]]) -> None:
    queue: FairQueue[tuple[int, int, int]] = FairQueue()
    served: list[tuple[int, int, int]] = []
    for number, (client, cost, pop) in enumerate(asked):
        queue.push((client, number, cost), client=str(client), cost=cost)
        if pop:
            served.append(queue.pop())
    while queue:
        served.append(queue.pop())
    assert sorted(number for _, number, _ in served) == list(range(len(asked)))
    for client in range(4):
        mine = [number for owner, number, _ in served if owner == client]
        assert mine == sorted(mine)


@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=20), min_size=2, max_size=4))
def test_while_all_clients_wait_none_gets_more_than_one_request_ahead(costs: list[list[int]]) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue()
    for client, mine in enumerate(costs):
        for cost in mine:
            queue.push((client, cost), client=str(client), cost=cost)
    left = [len(mine) for mine in costs]
    got = [0] * len(costs)
    while all(left):
        client, cost = queue.pop()
        left[client] -= 1
        got[client] += cost
        # Start-time fair queueing: no client is ahead of another by more than the largest requests of both.
        assert max(got) - min(got) <= 2 * 50


def test_a_client_that_has_asked_for_nothing_since_is_forgotten_when_there_are_many() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(1024):
        queue.push(f"r{number}", client=f"c{number}", cost=10)
        assert queue.pop() == f"r{number}"
    assert len(queue._ends) == 1024
    # Each starts at 0 and ends at 10, which is later than now: they have had what they asked for.
    queue.push("later", client="c0", cost=10)
    assert queue.pop() == "later"
    queue.push("new", client="c1024", cost=10)
    assert len(queue._ends) == 2
