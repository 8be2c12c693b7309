"""The draft model that all sequences share: its slots, its speed, and when it is given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import RunnerError
from edgekit.generation.speculative import draft_model
from edgekit.generation.speculative.draft_model import DraftModel, DraftRunner
from edgekit.runners.base import Chunk, Limits
from tests.generation.speculating import HashRunner, hashed

VOCAB = 50


class Clock:
    """The time, which passes only while the draft model runs: a millisecond a token."""

    now = 0.0

    @classmethod
    def perf_counter(cls) -> float:
        return cls.now


class Timed(HashRunner):
    """Takes eight bytes a token, and a millisecond."""

    def __init__(self) -> None:
        super().__init__(hashed(VOCAB), VOCAB, max_chunk=128)
        self.stuck = False

    @property
    def limits(self) -> Limits:
        return replace(super().limits, kv_bytes_per_token=8)

    def run(self, chunks: Sequence[Chunk]) -> list[npt.NDArray[np.float32]]:
        Clock.now += sum(len(chunk.tokens) for chunk in chunks) / 1000
        return super().run(chunks)

    def truncate(self, slot: int, length: int) -> None:
        if self.stuck:
            raise RunnerError("busy")
        super().truncate(slot, length)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Timed:
    monkeypatch.setattr(draft_model, "time", Clock)
    return Timed()


@pytest.fixture
def shared(runner: Timed) -> DraftRunner:
    return DraftRunner(runner, vocab_size=VOCAB)


def test_a_short_backlog_is_prefilled_at_once_and_a_long_one_in_a_chunk_per_step(shared: DraftRunner) -> None:
    assert [shared.prefill_chunk_size(size, 1.0) for size in (0, 1, 32, 32)] == [0, 1, 32, 32]
    # Before the speed is known, the smallest chunk.
    assert [shared.prefill_chunk_size(1000, 1.0) for _ in range(2)] == [64, 0]
    assert shared.prefill_chunk_size(32, 1.0) == 32
    shared.begin_step()
    assert [shared.prefill_chunk_size(33, 1.0) for _ in range(2)] == [33, 0]


@pytest.mark.parametrize(("seconds", "size"), [(0.01, 64), (0.1, 100), (0.25, 250), (9.0, 250)])
def test_a_chunk_takes_as_long_as_a_step_of_the_main_model_or_a_quarter_of_a_second(
    shared: DraftRunner, seconds: float, size: int
) -> None:
    shared.prefill(0, [1] * 33)  # 1000 tokens a second
    assert shared.prefill_chunk_size(1000, seconds) == size
    shared.begin_step()
    assert shared.prefill_chunk_size(70, seconds) == min(70, size)


def test_the_speed_is_measured_on_chunks_of_more_than_32_tokens(shared: DraftRunner, runner: Timed) -> None:
    shared.prefill(0, [1] * 32)
    assert shared.prefill_chunk_size(1000, 0.2) == 64
    shared.begin_step()
    shared.prefill(0, [1] * 128)
    before = Clock.now
    original = Timed.run

    def slow(self: Timed, chunks: Sequence[Chunk]) -> list[npt.NDArray[np.float32]]:
        Clock.now += 0.1
        return original(self, chunks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Timed, "run", slow)
        shared.prefill(0, [1] * 100)
    assert Clock.now == pytest.approx(before + 0.2)
    # 0.3 of the way from 1000 to 500 tokens a second.
    assert shared.prefill_chunk_size(1000, 0.2) == 170
    assert runner.length(0) == 32 + 128 + 100


def test_the_memory_of_a_slot_stays_until_it_is_emptied(shared: DraftRunner) -> None:
    slot = shared.acquire_slot()
    assert slot == 1
    shared.prefill(slot, [1] * 20)
    assert shared.kv_bytes == 160
    shared.truncate(slot, 5)
    shared.next_token(slot, [2, 3])
    assert shared.kv_bytes == 160
    shared.release_slot(slot)
    assert shared.kv_bytes == 0


def test_the_time_of_a_draft_token_is_known_once_one_was_drafted(shared: DraftRunner) -> None:
    assert shared.token_s == 0
    shared.next_token(0, [1])
    assert shared.token_s == pytest.approx(0.001)


def test_tokens_are_appended_in_chunks_and_the_last_ones_give_the_next(shared: DraftRunner, runner: Timed) -> None:
    model = hashed(VOCAB)
    for size in (1, 127, 128, 129, 256, 300):
        shared.reset()
        tokens = [number % VOCAB for number in range(size)]
        steps = runner.steps
        assert shared.next_token(0, tokens) == int(model(tokens).argmax())
        assert runner.slots[0] == tokens
        assert runner.steps - steps == -(-size // 128)


def test_a_slot_that_cannot_be_emptied_is_tried_again_when_one_is_needed(shared: DraftRunner, runner: Timed) -> None:
    first, second = shared.acquire_slot(), shared.acquire_slot()
    assert {first, second} == {0, 1}
    assert shared.acquire_slot() is None
    runner.stuck = True
    assert first is not None
    shared.release_slot(first)
    assert shared.acquire_slot() is None
    runner.stuck = False
    assert shared.acquire_slot() == first
    shared.reset()
    assert {shared.acquire_slot(), shared.acquire_slot()} == {0, 1}


def test_it_is_disabled_after_three_failures_in_a_row(shared: DraftRunner) -> None:
    for failures in (2, 3):
        for _ in range(failures):
            assert not shared.disabled
            shared.failed(RunnerError("lost"))
        assert shared.disabled is (failures == 3)
        if failures == 2:
            shared.succeeded()
    drafter = DraftModel(shared, cost=lambda drafted: 1 + 0.01 * drafted)
    assert drafter.draft([1, 2, 3], 8) == []
    assert drafter.speedup(3, 8) == 1.0


@pytest.mark.parametrize(
    ("size", "limit", "length"), [(3, 8, 8), (3, 9, 8), (3, 2, 2), (3, 0, 0), (4090, 8, 6), (0, 8, 0)]
)
def test_as_many_tokens_are_drafted_as_are_allowed_and_fit(
    shared: DraftRunner, size: int, limit: int, length: int
) -> None:
    drafter = DraftModel(shared, cost=lambda _: 1.0)
    assert (drafter.speedup(size, limit) > 1) is (length > 0)
    assert len(drafter.draft([1] * size, limit)) in {0, length}
    if size < 32:
        assert len(drafter.draft([1] * size, limit)) == length


def test_the_speedup_counts_the_time_of_the_draft_model(shared: DraftRunner) -> None:
    drafter = DraftModel(shared, cost=lambda _: 0.001)
    rate = shared.acceptance.value
    assert drafter.speedup(3, 1) == pytest.approx(1 + rate)
    shared.next_token(0, [1])
    # A draft token takes as long as a step of the main model now.
    assert drafter.speedup(3, 1) == 1.0
    slower = DraftModel(shared, cost=lambda _: 0.01)
    assert slower.speedup(3, 1) == pytest.approx((1 + rate) * 0.01 / 0.011)


def test_the_acceptance_counts_up_to_the_first_rejected_token(shared: DraftRunner) -> None:
    other = DraftRunner(HashRunner(hashed(VOCAB), VOCAB), vocab_size=VOCAB)
    drafter = DraftModel(shared, cost=lambda _: 1.0)
    drafter.learn(8, 3)
    other.acceptance.learn(4, 3)
    assert shared.acceptance.value == other.acceptance.value
    drafter.learn(4, 4)
    other.acceptance.learn(4, 4)
    assert shared.acceptance.value == other.acceptance.value
