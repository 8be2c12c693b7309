from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.export.quantization.allocate import allocate

ITEMS = st.lists(st.tuples(st.integers(0, 40), st.floats(-1, 10, allow_nan=False)), min_size=1, max_size=9)


@given(items=ITEMS, budget=st.integers(0, 200))
def test_no_other_choice_within_the_budget_gains_more(items: list[tuple[int, float]], budget: int) -> None:
    costs, gains = [cost for cost, _ in items], [gain for _, gain in items]
    chosen = allocate(costs, gains, budget)
    assert sum(cost for cost, taken in zip(costs, chosen, strict=True) if taken) <= budget
    best = max(
        sum(gain for gain, taken in zip(gains, choice, strict=True) if taken)
        for choice in product((False, True), repeat=len(items))
        if sum(cost for cost, taken in zip(costs, choice, strict=True) if taken) <= budget
    )
    assert sum(gain for gain, taken in zip(gains, chosen, strict=True) if taken) == pytest.approx(best)


def test_real_costs_leave_less_than_a_tensor_of_the_budget_unused() -> None:
    rng = np.random.default_rng(0)
    costs, gains = rng.integers(50_000, 70_000_000, 200), rng.lognormal(0, 2, 200)
    budget = 500_000_000
    chosen = allocate(costs.tolist(), gains.tolist(), budget)
    assert budget - costs[~chosen].min() < costs[chosen].sum() <= budget
    # The tensors left out gain less per byte or are too large: no swap of one for one is better.
    left = budget - costs[chosen].sum()
    for inside, outside in product(np.flatnonzero(chosen), np.flatnonzero(~chosen)):
        if costs[outside] <= costs[inside] + left - 200 * budget // 20_000:
            assert gains[outside] <= gains[inside]


def test_a_tensor_that_gains_nothing_is_not_chosen_though_the_budget_allows_it() -> None:
    assert allocate([5, 5, 5], [1.0, 0.0, -2.0], 100).tolist() == [True, False, False]


def test_costs_without_gains_are_refused() -> None:
    with pytest.raises(ValueError, match="gain"):
        allocate([1, 2], [1.0], 3)
