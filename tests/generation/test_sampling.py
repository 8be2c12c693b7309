from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import RequestError, RunnerError
from edgekit.generation.request import Sampling
from edgekit.generation.sampling import Sampler

Floats = npt.NDArray[np.float64]


def _logits(size: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def _expected(logits: npt.NDArray[np.float32], sampling: Sampling) -> Floats:
    """The distribution written out plainly: sort everything, cut, renormalize."""
    probs = np.exp((logits.astype(np.float64) - logits.max()) / sampling.temperature)
    order = np.argsort(-probs, kind="stable")
    kept = probs[order]
    if sampling.top_k:
        kept = kept[: sampling.top_k]
    kept = kept / kept.sum()
    if sampling.top_p < 1:
        kept = kept[: int(np.searchsorted(np.cumsum(kept), sampling.top_p)) + 1]
    if sampling.min_p:
        kept = kept[kept >= sampling.min_p * kept[0]]
    result = np.zeros(logits.size)
    result[order[: kept.size]] = kept / kept.sum()
    return result


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.5, top_p=0.8, seed=2),
        Sampling(temperature=1.5, top_k=5, seed=3),
        Sampling(temperature=1.0, min_p=0.1, seed=4),
        Sampling(temperature=0.9, top_k=20, top_p=0.7, min_p=0.02, seed=5),
    ],
)
def test_draws_follow_the_distribution_written_out_plainly(sampling: Sampling) -> None:
    logits = _logits(50)
    expected = _expected(logits, sampling)
    sampler = Sampler(sampling)
    draws = 20_000
    seen = np.bincount([sampler.choose(logits) for _ in range(draws)], minlength=50) / draws
    assert not seen[expected == 0].any()
    # Five standard deviations of a frequency at its largest.
    assert np.abs(seen - expected).max() < 5 * 0.5 / np.sqrt(draws)


@given(
    values=st.lists(st.sampled_from([-3.0, 0.0, 0.5, 1.0, 4.0]), min_size=2, max_size=300),
    top_k=st.integers(0, 320),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_only_tokens_that_the_filters_keep_are_drawn(
    values: list[float], top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.array(values, np.float32)
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p, seed=7)
    expected = _expected(logits, sampling)
    sampler = Sampler(sampling)
    drawn = {sampler.choose(logits) for _ in range(20)}
    # A border that rounding moves by one token is allowed.
    allowed = np.flatnonzero(expected > 0)
    floor = logits[allowed].min()
    assert all(logits[token] >= floor for token in drawn)
    assert len(drawn) <= allowed.size + 1


def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = np.array([1.0, 5.0, 5.0, -np.inf], np.float32)
    assert {Sampler(Sampling(temperature=0)).choose(logits) for _ in range(10)} == {1}
    assert Sampler(Sampling(temperature=1.0, top_p=0.0)).choose(logits) == 1


def test_the_same_seed_draws_the_same_tokens_and_another_does_not() -> None:
    logits = _logits(5000)

    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, top_p=0.95, seed=seed))
        return [sampler.choose(logits) for _ in range(50)]

    assert draw(-5) == draw(-5)
    assert draw(-5) != draw(6)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-5])
def test_a_tiny_temperature_is_greedy_and_does_not_overflow(temperature: float) -> None:
    logits = _logits(1000)
    assert Sampler(Sampling(temperature=temperature)).choose(logits) == int(logits.argmax())


def test_masked_tokens_are_never_drawn() -> None:
    logits = np.full(100, -np.inf, np.float32)
    logits[[3, 7]] = 0
    sampler = Sampler(Sampling(temperature=2.0, seed=0))
    assert {sampler.choose(logits) for _ in range(50)} == {3, 7}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_an_error(bad: float, temperature: float) -> None:
    logits = _logits(1000)
    logits[500] = bad
    with pytest.raises(RunnerError, match="not numbers"):
        Sampler(Sampling(temperature=temperature)).choose(logits)
    with pytest.raises(RunnerError, match="not numbers"):
        Sampler(Sampling(temperature=temperature)).choose(np.full(10, -np.inf, np.float32))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"seed": 2**64},
    ],
)
def test_values_outside_their_ranges_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(RequestError) as caught:
        Sampling(**fields)  # type: ignore[arg-type]
    assert caught.value.param == next(iter(fields))


def test_a_large_vocabulary_costs_little() -> None:
    logits = _logits(151_936)
    for sampling in (Sampling(temperature=0), Sampling(temperature=0.7, top_p=0.8, top_k=20, seed=1)):
        sampler = Sampler(sampling)
        sampler.choose(logits)
        best = min(_timed(sampler, logits) for _ in range(10))
        # A decode step of a 7B model takes 100 ms where it is fast.
        assert best < 0.005


def _timed(sampler: Sampler, logits: npt.NDArray[np.float32]) -> float:
    started = time.perf_counter()
    sampler.choose(logits)
    return time.perf_counter() - started
