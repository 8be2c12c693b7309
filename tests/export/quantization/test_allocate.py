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
    sizes, effects = [size for size, _ in items], [effect for _, effect in items]
    chosen = allocate(sizes, effects, budget)
    assert sum(size for size, taken in zip(sizes, chosen, strict=True) if taken) <= budget
    best = max(
        sum(effect for effect, taken in zip(effects, choice, strict=True) if taken)
        for choice in product((False, True), repeat=len(items))
        if sum(size for size, taken in zip(sizes, choice, strict=True) if taken) <= budget
    )
    assert sum(effect for effect, taken in zip(effects, chosen, strict=True) if taken) == pytest.approx(best)


def test_real_sizes_leave_less_than_a_tensor_of_the_budget_unused() -> None:
    rng = np.random.default_rng(0)
    sizes, effects = rng.integers(50_000, 70_000_000, 200), rng.lognormal(0, 2, 200)
    budget = 500_000_000
    chosen = allocate(sizes.tolist(), effects.tolist(), budget)
    assert budget - sizes[~chosen].min() < sizes[chosen].sum() <= budget
    # What is left out gains less per byte, or is too large: no swap of one for one is better.
    left = budget - sizes[chosen].sum()
    for inside, outside in product(np.flatnonzero(chosen), np.flatnonzero(~chosen)):
        if sizes[outside] <= sizes[inside] + left - 200 * budget // 20_000:
            assert effects[outside] <= effects[inside]


def test_what_gains_nothing_is_not_widened_though_there_is_room() -> None:
    assert allocate([5, 5, 5], [1.0, 0.0, -2.0], 100).tolist() == [True, False, False]


def test_sizes_without_effects_are_refused() -> None:
    with pytest.raises(ValueError, match="effect"):
        allocate([1, 2], [1.0], 3)
