from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.speculative import step_cost
from edgekit.generation.speculative.step_cost import StepCost, StepTimes, best_draft_length


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1e-4, 10)), max_size=60))
def test_more_tokens_never_cost_less(observed: list[tuple[int, float]]) -> None:
    cost = StepCost()
    for tokens, seconds in observed:
        cost.observe(tokens, seconds)
    values = [cost(tokens) for tokens in range(1, 100)]
    assert all(low <= high * (1 + 1e-9) for low, high in pairwise(values))
    assert values[0] > 0


def test_between_measured_steps_it_interpolates_and_beyond_them_it_goes_on() -> None:
    cost = StepCost()
    for tokens, seconds in ((1, 0.008), (5, 0.010), (9, 0.014)):
        for _ in range(3):
            cost.observe(tokens, seconds)
    assert cost(3) == pytest.approx(0.009)
    assert cost.verify_cost(6) == pytest.approx(0.012)
    assert cost(17) > cost(9)


def test_one_slow_step_does_not_count_once_others_were_measured() -> None:
    cost = StepCost()
    for seconds in (0.008, 0.5, 0.0081, 0.0079):
        cost.observe(1, seconds)
    assert cost(1) == pytest.approx(0.008)


def test_a_step_that_was_slow_once_and_never_tried_again_is_forgotten() -> None:
    cost = StepCost()
    cost.observe(5, 1.0)
    for _ in range(600):
        cost.observe(1, 0.01)
    assert cost(5) < 0.02


def test_before_any_step_there_are_ratios_and_prefill_is_not_looked_at() -> None:
    cost = StepCost()
    cost.observe(512, 3.0)
    assert cost(1) == 1
    assert 1 < cost(4) < 2
    cost.observe(1, 0.01)
    assert cost(4) < 0.02


def test_the_draft_length_is_the_one_that_yields_the_highest_rate() -> None:
    def cost(drafted: int) -> float:
        return 1 + 0.2 * drafted

    assert best_draft_length([0.0] * 8, cost)[0] == 0
    assert best_draft_length([0.1] * 8, cost)[0] == 0
    assert best_draft_length([0.99] * 8, cost)[0] == 8
    for rate in (0.3, 0.5, 0.7, 0.8):
        gains = {}
        for length in range(9):
            expected = sum(rate**step for step in range(length + 1))
            gains[length] = expected / cost(length)
        assert best_draft_length([rate] * 8, cost)[0] == max(gains, key=lambda length: gains[length])
    # Where further tokens are free, as many as there are.
    assert best_draft_length([0.2] * 8, lambda _: 1.0)[0] == 8


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([1, 2, 4], [1, 2, 4]),
        ([4, 1, 1], [2, 2, 2]),
        ([1, 6, 2, 4, 9], [1, 4, 4, 4, 9]),
        ([5, 4, 3, 2, 1], [3, 3, 3, 3, 3]),
    ],
)
def test_costs_that_fall_with_more_tokens_are_averaged_until_none_does(
    measured: list[float], expected: list[float]
) -> None:
    points = [(tokens, float(cost)) for tokens, cost in enumerate(measured, 1)]
    assert step_cost._monotone(points) == [(tokens, float(cost)) for tokens, cost in enumerate(expected, 1)]


def test_beyond_the_measured_steps_the_cost_goes_on_as_before_any_was_measured() -> None:
    unmeasured = StepCost()
    cost = StepCost()
    cost.observe(5, 0.012)
    for tokens in (1, 4, 6, 20):
        assert cost(tokens) == pytest.approx(0.012 * unmeasured(tokens) / unmeasured(5))
    # From the nearest that was measured.
    cost.observe(9, 0.020)
    assert cost(1) == pytest.approx(0.012 * unmeasured(1) / unmeasured(5))
    assert cost(20) == pytest.approx(0.020 * unmeasured(20) / unmeasured(9))


@pytest.mark.parametrize(
    ("tokens", "seconds", "counts"), [(1, 0.5, True), (8, 0.5, True), (0, 0.5, False), (9, 0.5, False), (1, 0.0, False)]
)
def test_a_step_without_tokens_or_time_and_one_that_is_prefill_are_ignored(
    tokens: int, seconds: float, *, counts: bool
) -> None:
    cost = StepCost(max_tokens=8)
    cost.observe(tokens, seconds)
    assert (cost(1) != 1) is counts


def test_the_last_five_steps_count_and_of_two_middle_ones_the_faster() -> None:
    cost = StepCost()
    for seconds in (0.9, 0.9, 0.9, 0.1, 0.2):
        cost.observe(1, seconds)
    assert cost(1) == 0.9
    cost.observe(1, 0.3)
    cost.observe(1, 0.4)
    assert cost(1) == 0.3
    other = StepCost()
    other.observe(1, 0.02)
    other.observe(1, 0.01)
    assert other(1) == 0.01


def test_a_number_of_tokens_is_forgotten_after_512_steps_without_it() -> None:
    cost = StepCost()
    cost.observe(5, 1.0)
    for _ in range(512):
        cost.observe(1, 0.01)
    assert cost(5) == 1.0
    cost.observe(1, 0.01)
    assert cost(5) < 0.02


def test_a_draft_that_gains_less_than_the_noise_does_not_pay_off() -> None:
    assert best_draft_length([1.0], lambda drafted: 2 / 1.03 if drafted else 1.0) == (0, 1.0)
    length, speedup = best_draft_length([1.0], lambda drafted: 2 / 1.04 if drafted else 1.0)
    assert length == 1
    assert speedup == pytest.approx(1.04)
    assert best_draft_length([], lambda _: 1.0) == (0, 1.0)


def test_the_speedup_is_the_rate_of_tokens_relative_to_none_drafted() -> None:
    length, speedup = best_draft_length([1.0, 1.0], lambda drafted: 3 + drafted)
    assert length == 2
    assert speedup == pytest.approx(3 / (5 / 3))
    # The second is accepted only where the first is.
    length, speedup = best_draft_length([0.5, 0.5], lambda _: 1.0)
    assert length == 2
    assert speedup == pytest.approx(1 + 0.5 + 0.25)


def test_with_several_sequences_a_draft_costs_each_its_share_of_a_longer_step() -> None:
    times = StepTimes()
    times.observe_single(1, 0.01)
    times.observe_single(3, 0.012)
    assert times.verify_cost(2) == times.verify_cost(2, running=4) == pytest.approx(0.012)
    times.observe_decode(0.04)
    assert times.verify_cost(2, running=1) == pytest.approx(0.012)
    assert times.verify_cost(0, running=2) == pytest.approx(0.02)
    assert times.verify_cost(2, running=2) == pytest.approx(1.2 * 0.02)
    assert times.verify_cost(2, running=4) == pytest.approx(1.2 * 0.01)


def test_a_prefill_chunk_doubles_a_step_at_most_or_takes_fifty_milliseconds() -> None:
    times = StepTimes()
    assert times.prefill_chunk_size(1000) == 16, "before the speed is known"
    assert times.observe_prefill(160, 0.1)
    assert times.prefill_chunk_size(1000) == 80
    assert times.prefill_chunk_size(70) == 70
    times.observe_decode(0.02)
    assert times.prefill_chunk_size(1000) == 80
    times.observe_decode(0.12)
    # Decoding takes 0.04 s on average now.
    assert times.prefill_chunk_size(1000) == 128


def test_the_prefill_speed_follows_the_last_steps_of_enough_tokens() -> None:
    times = StepTimes()
    assert not times.observe_prefill(15, 0.001)
    assert times.prefill_chunk_size(1000) == 16
    assert times.observe_prefill(16, 0.01)
    assert times.prefill_chunk_size(1000) == 80
    assert times.observe_prefill(32, 0.01)
    assert times.prefill_chunk_size(1000) == int(0.05 * (1600 + 0.3 * 1600))
    # A slow one makes the chunks smaller again, down to a minimum.
    for _ in range(30):
        times.observe_prefill(16, 1.0)
    assert times.prefill_chunk_size(1000) == 16
