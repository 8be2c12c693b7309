"""What waits for memory costs nothing meanwhile, and pushes nothing out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from edgekit.generation.engine import Engine
from edgekit.generation.prefix import PrefixCache, cache, keys
from edgekit.generation.request import ChatRequest, Delta, Event, Finish, Message
from edgekit.generation.slots import Slots
from edgekit.runners.base import Chunk
from tests.generation.tiny import EchoRunner, echo_model

PER_TOKEN = 8
KEPT = list(range(32, 132))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens were hashed, each time; the hashes themselves are real."""
    counts: list[int] = []
    real = keys.block_keys

    def counted(root: bytes, tokens: Sequence[int], block_tokens: int) -> list[bytes]:
        counts.append(len(tokens))
        return real(root, tokens, block_tokens)

    monkeypatch.setattr(cache, "block_keys", counted)
    return counts


def _prefix() -> PrefixCache:
    return PrefixCache(None, memory_bytes=1 << 20, kv_bytes_per_token=PER_TOKEN, fingerprint="m")


def _slots(budget: int, *, slots: int = 3) -> tuple[Slots, EchoRunner]:
    runner = echo_model(context_length=400, sequence_slots=slots, max_chunk=400).runner
    assert isinstance(runner, EchoRunner)
    return Slots(runner, budget_bytes=budget * PER_TOKEN, prefix=_prefix()), runner


def _fill(slots: Slots, runner: EchoRunner, tokens: list[int]) -> int:
    """Let an answer hold these tokens; returns its slot."""
    taken = slots.take(tokens, "")
    assert taken is not None
    number, held = taken
    runner.run([Chunk(number, tokens[held:], "none", exact=True)])
    slots.advance(number, tokens[held:], exact=True)
    return number


def test_a_prompt_that_does_not_fit_takes_nothing_away_and_is_not_looked_for(hashed: list[int]) -> None:
    slots, runner = _slots(300)
    idle = _fill(slots, runner, KEPT)
    slots.release(idle)
    busy = _fill(slots, runner, [5] * 150)
    before = [list(tokens) for tokens in runner.slots]
    hashed.clear()
    for _ in range(3):
        assert slots.take([7] * 200, "") is None
    # Not even one that begins like what lies there.
    assert slots.take([*KEPT, *[7] * 100], "") is None
    assert runner.slots == before
    assert (slots.length(idle), slots.kv_bytes, hashed) == (100, 250 * PER_TOKEN, [])
    slots.release(busy)
    # What was kept is still of use.
    assert slots.take([*KEPT, *[7] * 100], "") == (idle, 100)


@pytest.mark.parametrize("length", [117, 118, 119])
def test_an_answer_begins_as_soon_as_emptying_the_idle_slots_makes_room_and_not_before(length: int) -> None:
    slots, runner = _slots(300)
    for tokens in (KEPT, [9] * 60):
        slots.release(_fill(slots, runner, tokens), keep=True)
    _fill(slots, runner, [5] * 150)
    # 150 tokens run and want 32 more; 118 are left.
    taken = slots.take([7] * length, "")
    assert (taken is not None) == (length <= 118)
    if taken is not None:
        assert sum(map(len, runner.slots)) == 150


def test_a_prompt_that_waits_for_memory_is_hashed_once_it_begins_and_not_in_every_step(hashed: list[int]) -> None:
    model = echo_model("Paris is the capital of France. " * 4, context_length=400, sequence_slots=2, max_chunk=64)
    told: dict[str, list[Event]] = {"first": [], "second": []}
    tickets = [
        model.ticket(
            ChatRequest(name, (Message("user", content),), max_tokens=80), told[name].append, submitted=time.monotonic()
        )
        for name, content in (("first", "a" * 90), ("second", "b" * 130))
    ]
    # One token short of what both prompts, and the first's room to grow, would take.
    tokens = sum(len(ticket.prompt) for ticket in tickets) + 31
    engine = Engine(model, kv_budget_bytes=tokens * PER_TOKEN, prefix=_prefix(), speculation=False)
    engine.add(tickets[0])
    while not any(isinstance(event, Delta) for event in told["first"]):
        engine.step()
    engine.add(tickets[1])
    hashed.clear()
    steps = 0
    while True:
        engine.step()
        if any(isinstance(event, Finish) for event in told["first"]):
            break
        steps += 1
        assert engine.stats.waiting == 1
        assert hashed == []
    assert steps > 50
    while not engine.idle:
        engine.step()
    assert isinstance(told["second"][-1], Finish)
    assert hashed
