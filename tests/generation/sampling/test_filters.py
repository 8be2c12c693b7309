from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.sampling import filters

Floats = npt.NDArray[np.float32]

# Few different values: many are equal.
VALUES = st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0, 2.5, 7.0]), min_size=1, max_size=400)
SHARES = st.sampled_from([0.0, 0.01, 0.5, 0.77, 0.95, 0.999, 1.0])


@pytest.fixture(autouse=True, params=["as it is", "every path"])
def _sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code paths for large vocabularies must be right for small ones too, where loops can check them."""
    if request.param == "every path":
        monkeypatch.setattr(filters, "_SMALL", 8)
        monkeypatch.setattr(filters, "_TOP", 2)
        monkeypatch.setattr(filters, "_SAMPLE", 8)
        monkeypatch.setattr(filters, "_SLACK", 0)
        monkeypatch.setattr(filters, "_COLUMN", 4)
        monkeypatch.setattr(filters, "_SHORT_COLUMN", 2)


def _check_fewest(kept: npt.NDArray[np.intp], keys: Sequence[float], weights: Floats, target: float) -> None:
    """The kept ones have the largest keys, first among ties, and no fewer of them add up to `target`."""
    order = sorted(range(len(keys)), key=lambda index: -keys[index])
    assert sorted(kept) == sorted(order[: len(kept)])
    total = sum(float(weights[index]) for index in order[: len(kept)])
    last = float(weights[order[len(kept) - 1]])
    # Sums may differ in their last digits.
    rounding = 1e-6 * float(weights.sum(dtype=np.float64)) + 1e-30
    assert total >= target - rounding or len(kept) == len(keys)
    assert total - last < target + rounding


@given(values=VALUES, count=st.integers(1, 420))
def test_the_largest_are_those_that_sorting_finds_with_ties_to_the_first(values: list[float], count: int) -> None:
    order = sorted(range(len(values)), key=lambda index: -values[index])
    assert sorted(filters.largest(np.array(values, np.float32), count)) == sorted(order[:count])


@given(values=VALUES, top_p=SHARES)
def test_a_nucleus_is_the_smallest_set_with_the_requested_probability(values: list[float], top_p: float) -> None:
    weights = np.array([*values, 1.0], np.float32)
    kept = filters.nucleus(weights, top_p)
    _check_fewest(kept, [float(value) for value in weights], weights, top_p * float(weights.sum(dtype=np.float64)))


@given(values=VALUES, typical_p=SHARES)
def test_typical_tokens_are_the_closest_to_the_entropy(values: list[float], typical_p: float) -> None:
    scores = -np.array([*values, 0.0], np.float32)
    weights = np.exp(scores)
    kept = filters.typical(scores, weights, typical_p)
    probs = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    entropy = -sum(p * np.log(p) for p in probs)
    # Rounded, so that equal scores are equally near in spite of rounding.
    keys = [-round(abs(-float(np.log(p)) - entropy), 4) for p in probs]
    _check_fewest(kept, keys, weights, typical_p * float(weights.sum(dtype=np.float64)))


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("size", [5_000, 40_000, 151_936])
def test_the_filters_are_right_for_large_vocabularies_however_sure_the_model_is(size: int, spread: float) -> None:
    random = np.random.default_rng(size)
    scores = random.normal(0, spread, size).astype(np.float32)
    scores -= scores.max()
    weights = np.exp(scores)
    for share in (0.1, 0.9, 0.99):
        wanted = share * weights.sum(dtype=np.float64)
        mean = (scores.astype(np.float64) * weights).sum() / weights.sum(dtype=np.float64)
        for kept, keys in (
            (filters.nucleus(weights, share), weights),
            (filters.typical(scores, weights, share), -np.abs(scores - np.float32(mean))),
        ):
            running = np.cumsum(weights[np.argsort(-keys)], dtype=np.float64)
            expected = int(np.searchsorted(running, wanted)) + 1
            assert abs(kept.size - expected) <= 1 + expected * 1e-3
            assert np.unique(kept).size == kept.size
            left = np.delete(keys, kept)
            assert left.size == 0 or keys[kept].min() >= left.max() - 1e-5


@given(values=VALUES, uniform=st.floats(0, 1, exclude_max=True))
def test_a_draw_never_selects_a_weight_of_zero(values: list[float], uniform: float) -> None:
    weights = np.array([*values, 1.0], np.float32)
    assert weights[filters.draw(weights, uniform)] > 0


@pytest.mark.parametrize("size", [1, 3, 64, 65, 5_000, 9_999])
def test_evenly_spaced_draws_select_each_weight_in_proportion(size: int) -> None:
    weights = np.random.default_rng(size).integers(0, 4, size).astype(np.float32)
    weights[-1] = 3
    total = int(weights.sum())
    draws = np.bincount([filters.draw(weights, (step + 0.5) / total) for step in range(total)], minlength=size)
    assert (draws == weights).all()


def test_a_draw_just_below_one_selects_the_last_weight_that_is_not_zero() -> None:
    for size in (10, 10_000):
        weights = np.full(size, 0.1, np.float32)
        weights[-3:] = 0
        assert weights[filters.draw(weights, float(np.nextafter(1.0, 0.0)))] > 0


def test_logits_below_the_floor_add_up_to_a_negligible_probability() -> None:
    for size in (10, 152_000):
        assert size * np.exp(-filters.softmax_floor(size)) <= 2**-24 * (1 + 1e-9)
