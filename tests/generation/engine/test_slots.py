"""A request that waits for memory costs nothing meanwhile, and evicts nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from edgekit.generation.engine.engine import Engine
from edgekit.generation.engine.request_state import RequestState
from edgekit.generation.engine.slots import Slots
from edgekit.generation.prefix import PrefixCache, cache, keys
from edgekit.generation.types import ChatRequest, Delta, Event, Finished, Message
from edgekit.runners.base import Chunk
from edgekit.runners.buckets import KvPool
from tests.generation.faults import Faults
from tests.generation.tiny import EchoRunner, echo_model

PER_TOKEN = 8
KEPT = list(range(32, 132))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens hashed by each call; the hashes themselves are real."""
    counts: list[int] = []
    real = keys.block_keys

    def counted(root: bytes, tokens: Sequence[int], block_tokens: int) -> list[bytes]:
        counts.append(len(tokens))
        return real(root, tokens, block_tokens)

    monkeypatch.setattr(cache, "block_keys", counted)
    return counts


def high_water(slots: Slots, number: int) -> int:
    """Tokens that a slot has memory for."""
    return 400 - slots.growth(number, 400)


def _prefix() -> PrefixCache:
    return PrefixCache(None, memory_bytes=1 << 20, kv_bytes_per_token=PER_TOKEN, fingerprint="m")


def _slots(budget: int, *, slots: int = 3) -> tuple[Slots, EchoRunner]:
    runner = echo_model(context_length=400, sequence_slots=slots, max_chunk=400).runner
    assert isinstance(runner, EchoRunner)
    return Slots(runner, budget_bytes=budget * PER_TOKEN, prefix=_prefix()), runner


def _fill(slots: Slots, runner: EchoRunner, tokens: list[int]) -> int:
    """Fill a slot with these tokens; returns the slot."""
    taken = slots.acquire(tokens, "")
    assert taken is not None
    number, length = taken
    runner.run([Chunk(number, tokens[length:], "none", exact=True)])
    slots.advance(number, tokens[length:], exact=True)
    return number


def test_a_prompt_that_does_not_fit_evicts_nothing_and_is_not_looked_up(hashed: list[int]) -> None:
    slots, runner = _slots(300)
    idle = _fill(slots, runner, KEPT)
    slots.release(idle)
    busy = _fill(slots, runner, [5] * 150)
    before = [list(tokens) for tokens in runner.slots]
    hashed.clear()
    for _ in range(3):
        assert slots.acquire([7] * 200, "") is None
    # Not even one with a cached prefix.
    assert slots.acquire([*KEPT, *[7] * 100], "") is None
    assert runner.slots == before
    assert (slots.length(idle), slots.kv_bytes, hashed) == (100, 250 * PER_TOKEN, [])
    slots.release(busy)
    # The kept prefix is still reused.
    assert slots.acquire([*KEPT, *[7] * 100], "") == (idle, 100)


@pytest.mark.parametrize("length", [117, 118, 119])
def test_a_sequence_is_admitted_as_soon_as_emptying_the_free_slots_is_enough_and_not_before(length: int) -> None:
    slots, runner = _slots(300)
    for tokens in (KEPT, [9] * 60):
        slots.release(_fill(slots, runner, tokens), keep=True)
    _fill(slots, runner, [5] * 150)
    # 150 tokens are running with a headroom of 32; 118 are free.
    taken = slots.acquire([7] * length, "")
    assert (taken is not None) == (length <= 118)
    if taken is not None:
        assert sum(map(len, runner.slots)) == 150


def test_a_prompt_that_waits_for_memory_is_hashed_when_it_is_admitted_and_not_in_every_step(hashed: list[int]) -> None:
    model = echo_model("Paris is the capital of France. " * 4, context_length=400, sequence_slots=2, max_chunk=64)
    events: dict[str, list[Event]] = {"first": [], "second": []}
    states = [
        RequestState(
            model.prepare(ChatRequest(name, (Message("user", content),), max_tokens=80)),
            events[name].append,
            submitted=time.monotonic(),
        )
        for name, content in (("first", "a" * 90), ("second", "b" * 130))
    ]
    # One token less than both prompts and the first one's headroom need.
    tokens = sum(len(state.prompt) for state in states) + 31
    engine = Engine(model, kv_budget_bytes=tokens * PER_TOKEN, prefix=_prefix(), speculation=False)
    engine.add(states[0])
    while not any(isinstance(event, Delta) for event in events["first"]):
        engine.step()
    engine.add(states[1])
    hashed.clear()
    steps = 0
    while True:
        engine.step()
        if any(isinstance(event, Finished) for event in events["first"]):
            break
        steps += 1
        assert engine.stats.waiting == 1
        assert hashed == []
    assert steps > 50
    while not engine.idle:
        engine.step()
    assert isinstance(events["second"][-1], Finished)
    assert hashed


@pytest.mark.parametrize("broken", [False, True])
def test_a_reset_frees_the_slots_that_the_runner_empties_and_keeps_the_others_busy(broken: bool) -> None:
    slots, runner = _slots(300)
    _fill(slots, runner, KEPT)
    slots.release(_fill(slots, runner, [9] * 60))
    faults = Faults(runner)
    if broken:
        faults.breaks("truncate")
    assert slots.reset() is not broken
    faults.breaks()
    # All three can be taken again, or none.
    taken = [slots.acquire([token] * 40, "") for token in (5, 6, 7)]
    assert [got is not None for got in taken] == [not broken] * 3


def test_a_slot_with_another_prompt_is_emptied_and_its_kv_cache_kept_in_memory() -> None:
    slots, runner = _slots(400, slots=1)
    slots.release(_fill(slots, runner, KEPT))
    assert slots.acquire([7] * 40, "") == (0, 0)
    assert (runner.slots[0], slots.kv_bytes) == ([], 0)
    slots.release(0)
    restored = slots.acquire([*KEPT, 7], "")
    assert restored is not None
    assert restored[1] > 0
    assert runner.slots[0] == KEPT[: restored[1]]


def test_a_prefix_is_copied_from_a_busy_slot_into_an_emptied_one() -> None:
    slots, runner = _slots(400, slots=2)
    slots.release(_fill(slots, runner, [9] * 60))
    busy = _fill(slots, runner, KEPT)
    other = _fill(slots, runner, [6] * 40)
    slots.release(other)
    assert slots.acquire([*KEPT[:50], 7], "") == (other, 50)
    assert (runner.slots[busy], runner.slots[other]) == (KEPT, KEPT[:50])
    assert high_water(slots, other) == 50


@pytest.mark.parametrize(("common", "length"), [(15, 0), (16, 16), (99, 99), (100, 100)])
def test_a_prefix_of_sixteen_tokens_is_reused_in_its_slot_and_a_shorter_one_is_not(common: int, length: int) -> None:
    slots, runner = _slots(400)
    kept = _fill(slots, runner, KEPT)
    slots.release(kept)
    taken = slots.acquire([*KEPT[:common], 7, 7], "")
    assert taken is not None
    assert taken[1] == length
    assert (taken[0] == kept) == (length > 0)
    assert runner.slots[taken[0]] == KEPT[:length]


@pytest.mark.parametrize(("common", "length"), [(15, 0), (16, 16)])
def test_a_prefix_of_sixteen_tokens_is_copied_from_a_running_sequence(common: int, length: int) -> None:
    slots, runner = _slots(400)
    busy = _fill(slots, runner, KEPT)
    taken = slots.acquire([*KEPT[:common], 7, 7], "")
    assert taken is not None
    assert taken == (taken[0], length)
    assert taken[0] != busy
    assert (runner.slots[busy], runner.slots[taken[0]]) == (KEPT, KEPT[:length])


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    slots, runner = _slots(400)
    kept = _fill(slots, runner, KEPT)
    slots.release(kept)
    assert slots.acquire(KEPT, "") == (kept, 99)


@pytest.mark.parametrize("fields", [{"reuse": False}, {"tenant": "other"}])
def test_without_reuse_and_for_another_tenant_a_slot_is_emptied(fields: dict[str, object]) -> None:
    slots, runner = _slots(400, slots=1)
    slots.release(_fill(slots, runner, KEPT))
    taken = slots.acquire([*KEPT, 7], **{"tenant": "", **fields})  # type: ignore[arg-type]
    assert taken == (0, 0)
    assert runner.slots == [[]]


def test_a_private_slot_is_not_reused_nor_copied_from() -> None:
    slots, runner = _slots(400)
    taken = slots.acquire(KEPT, "", private=True)
    assert taken is not None
    runner.run([Chunk(taken[0], KEPT, "none", exact=True)])
    slots.advance(taken[0], KEPT, exact=True)
    again = slots.acquire([*KEPT, 7], "")
    assert again is not None
    assert again[1] == 0
    slots.release(taken[0])
    slots.release(again[0])
    third = slots.acquire([*KEPT, 7], "")
    assert third is not None
    assert third[1] == 0


def test_only_what_was_computed_exactly_is_kept() -> None:
    slots, runner = _slots(400)
    number = _fill(slots, runner, KEPT[:20])
    for tokens, exact in (([1, 2], False), ([3, 4], True)):
        runner.run([Chunk(number, tokens, "none", exact=exact)])
        slots.advance(number, tokens, exact=exact)
    assert slots.length(number) == 24
    slots.release(number)
    # After an inexact token nothing is exact.
    assert runner.slots[number] == KEPT[:20]
    assert high_water(slots, number) == 24


def test_an_empty_slot_is_taken_first_and_then_the_one_that_was_used_longest_ago() -> None:
    slots, runner = _slots(400)
    first, second = _fill(slots, runner, [1] * 20), _fill(slots, runner, [2] * 20)
    slots.release(second)
    slots.release(first)
    order = [_fill(slots, runner, [token] * 20) for token in (3, 4, 5)]
    assert order[1:] == [second, first]
    assert slots.acquire([6], "") is None, "all are busy"
    assert (slots.free, slots.empty_any()) == (0, None)
    slots.release(second)
    assert (slots.free, slots.empty_any()) == (1, second)
    assert slots.length(second) == high_water(slots, second) == 0


def test_memory_is_counted_in_tokens_and_bytes() -> None:
    slots, runner = _slots(100)
    assert slots.max_tokens == slots.free_tokens == 100
    busy, idle = _fill(slots, runner, [1] * 30), _fill(slots, runner, [2] * 20)
    slots.release(idle)
    assert slots.kv_bytes == 50 * PER_TOKEN
    assert slots.free_tokens == 70
    assert slots.slot_bytes(busy) == 30 * PER_TOKEN
    slots.truncate(busy, 10)
    # The memory stays until the slot is emptied.
    assert (slots.length(busy), high_water(slots, busy), slots.slot_bytes(busy)) == (10, 30, 10 * PER_TOKEN)
    slots.truncate(busy, 11)
    assert slots.length(busy) == 10
    slots.release(busy, keep=False)
    assert slots.kv_bytes == 20 * PER_TOKEN
    assert Slots(runner).max_tokens == 3 * 400
    assert Slots(runner, budget_bytes=1 << 40).max_tokens == 3 * 400
    assert Slots(runner, budget_bytes=100 * PER_TOKEN - 1).max_tokens == 99


def test_free_slots_are_emptied_until_the_tokens_fit_the_oldest_first() -> None:
    slots, runner = _slots(300)
    numbers = [_fill(slots, runner, [token] * 60) for token in (1, 2, 3)]
    slots.release(numbers[1])
    slots.release(numbers[0])
    for tokens, lengths in ((120, [60, 60, 60]), (121, [60, 0, 60]), (180, [60, 0, 60]), (181, [0, 0, 60])):
        assert slots.make_room(tokens)
        assert [slots.length(number) for number in numbers] == lengths
    assert slots.make_room(240)
    assert not slots.make_room(241)


def test_in_a_pool_a_slot_takes_the_memory_of_its_bucket() -> None:
    _, runner = _slots(1)
    runner._limits = replace(runner.limits, kv_pool=KvPool(600, 400))
    slots = Slots(runner)
    assert (slots.max_tokens, slots.longest) == (600, 400)
    first = _fill(slots, runner, [1] * 100)
    assert (slots.kv_bytes, slots.free_tokens) == (256 * PER_TOKEN, 344)
    assert [slots.growth(first, length) for length in (101, 256, 257, 400)] == [0, 0, 144, 144]
    assert [slots.most(first, free) for free in (0, 143, 144)] == [256, 256, 400]
    second = _fill(slots, runner, [2] * 10)
    assert slots.free_tokens == 88
    assert slots.acquire([3], "") is None
    # What a free slot holds makes room.
    slots.release(second)
    assert slots.make_room(slots.growth(first, 300))
    assert slots.length(second) == 0
    assert Slots(runner, budget_bytes=300 * PER_TOKEN).longest == 256
