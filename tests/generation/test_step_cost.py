from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.step_cost import StepCost, best_length


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
    assert cost.verifying(6) == pytest.approx(0.012)
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


def test_the_length_drafted_is_the_one_that_yields_most_tokens_in_time() -> None:
    def cost(drafted: int) -> float:
        return 1 + 0.2 * drafted

    assert best_length([0.0] * 8, cost)[0] == 0
    assert best_length([0.1] * 8, cost)[0] == 0
    assert best_length([0.99] * 8, cost)[0] == 8
    for chance in (0.3, 0.5, 0.7, 0.8):
        rates = {}
        for length in range(9):
            expected = sum(chance**step for step in range(length + 1))
            rates[length] = expected / cost(length)
        assert best_length([chance] * 8, cost)[0] == max(rates, key=lambda length: rates[length])
    # Where further tokens are free, as many as there are.
    assert best_length([0.2] * 8, lambda _: 1.0)[0] == 8
