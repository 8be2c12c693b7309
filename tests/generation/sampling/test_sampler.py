from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import EdgekitError, RequestError, RunnerError
from edgekit.generation.sampling.sampler import Sampler
from edgekit.generation.types import Sampling
from tests.generation.sampling.reference import chi_square_limit, distribution, pack, penalized

Logits = npt.NDArray[np.float32]


def _logits(size: int, seed: int = 0) -> Logits:
    return _fixed(np.random.default_rng(seed).normal(0, 3, size))


def _fixed(values: npt.ArrayLike) -> Logits:
    """Read-only logits: any write fails the test."""
    logits = np.array(values, np.float32)
    logits.flags.writeable = False
    return logits


@pytest.mark.parametrize("allowed", [None, {3, 4, 9, 20, 33}, set(range(60)) - {1, 8}])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.5, top_p=0.8, seed=2),
        Sampling(temperature=1.5, top_k=5, seed=3),
        Sampling(temperature=1.0, min_p=0.1, seed=4),
        Sampling(temperature=1.0, typical_p=0.6, seed=5),
        Sampling(temperature=1.3, top_k=30, typical_p=0.9, top_p=0.8, min_p=0.03, seed=6),
        Sampling(temperature=1.0, logit_bias={3: 5.0, 8: 100.0, 9: -100.0}, seed=7),
        Sampling(temperature=0.1, seed=8),
    ],
)
def test_draws_follow_the_reference_distribution(sampling: Sampling, allowed: set[int] | None) -> None:
    logits = _logits(60)
    expected = distribution(penalized([float(value) for value in logits], sampling), sampling, allowed)
    sampler = Sampler(sampling, vocab_size=60)
    mask = None if allowed is None else pack(allowed, 60)
    draws = 5_000
    seen = np.bincount([sampler.sample(logits, mask).token for _ in range(draws)], minlength=60)
    assert not seen[np.array(expected) == 0].any()
    # Rare tokens are pooled, as the chi-square test requires.
    wanted = np.array(expected) * draws
    rare = wanted < 10
    groups = [(float(seen[rare].sum()), wanted[rare].sum()), *zip(seen[~rare], wanted[~rare], strict=True)]
    groups = [(count, expectation) for count, expectation in groups if expectation > 0]
    chi_square = sum((count - expectation) ** 2 / expectation for count, expectation in groups)
    assert chi_square < chi_square_limit(max(len(groups) - 1, 1))


@given(
    values=st.lists(st.sampled_from([-3.0, 0.0, 0.5, 1.0, 4.0]), min_size=2, max_size=300),
    top_k=st.integers(0, 320),
    typical_p=st.sampled_from([0.3, 0.9, 1.0]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.2, 1.0]),
    banned=st.sets(st.integers(0, 299)),
)
def test_only_tokens_that_filters_and_mask_keep_are_drawn(
    *, values: list[float], top_k: int, typical_p: float, top_p: float, min_p: float, banned: set[int]
) -> None:
    size = len(values)
    allowed = set(range(size)) - banned or {size - 1}
    sampling = Sampling(temperature=1.0, top_k=top_k, typical_p=typical_p, top_p=top_p, min_p=min_p, seed=7)
    expected = distribution(values, sampling, allowed)
    sampler = Sampler(sampling, vocab_size=size)
    drawn = {sampler.sample(_fixed(values), pack(allowed, size)).token for _ in range(20)}
    assert drawn <= allowed
    # Rounding may move the threshold by one token, which ties with a kept one, or is the next.
    kept = [token for token in range(size) if expected[token] > 0]
    unexpected = {token for token in drawn if values[token] not in {values[other] for other in kept}}
    assert len(unexpected) <= 1
    assert len(drawn) <= len(kept) + 1


def test_temperature_zero_takes_the_most_likely_token_with_ties_to_the_first() -> None:
    logits = _fixed([1.0, 5.0, 5.0, -np.inf])
    assert {Sampler(Sampling(temperature=0), vocab_size=4).sample(logits).token for _ in range(10)} == {1}
    assert Sampler(Sampling(temperature=1.0, top_p=0.0), vocab_size=4).sample(logits).token == 1
    assert Sampler(Sampling(temperature=1.0, top_k=1), vocab_size=4).sample(logits).token == 1


def test_the_same_seed_draws_the_same_tokens_and_another_does_not() -> None:
    logits = _logits(5000)

    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, top_p=0.95, typical_p=0.98, seed=seed), vocab_size=5000)
        return [sampler.sample(logits).token for _ in range(50)]

    assert draw(-5) == draw(-5)
    assert draw(-5) != draw(6)


@pytest.mark.parametrize(
    "fields", [{}, {"top_k": 2}, {"top_p": 0.0}, {"min_p": 1.0}, {"typical_p": 0.1}, {"presence_penalty": 1.0}]
)
def test_each_token_takes_one_draw_whatever_the_filters_leave(fields: dict[str, float]) -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=3, **fields), vocab_size=5000, top_logprobs=2)  # type: ignore[arg-type]
    logits, one = _logits(5000), pack({7}, 5000)
    for step in range(20):
        sampler.sample(logits, one if step % 2 else None)
        sampler.score(logits, 5)
        sampler.accept(5)
    plain = np.random.Generator(np.random.PCG64(3))
    plain.random(20)
    assert sampler._random.bit_generator.state == plain.bit_generator.state


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-5])
def test_a_tiny_temperature_is_greedy_and_does_not_overflow(temperature: float) -> None:
    logits = _logits(1000)
    for typical_p, top_p, min_p in ((1.0, 1.0, 0.0), (0.9, 1.0, 0.0), (1.0, 0.9, 0.1)):
        sampling = Sampling(temperature=temperature, typical_p=typical_p, top_p=top_p, min_p=min_p)
        sampler = Sampler(sampling, vocab_size=1000)
        assert sampler.sample(logits).token == int(logits.argmax())
        nearly_all = pack(set(range(1000)) - {int(logits.argmin())}, 1000)
        assert sampler.sample(logits, nearly_all).token == int(logits.argmax())


@pytest.mark.parametrize("fields", [{}, {"top_k": 50}, {"typical_p": 0.9}, {"top_p": 0.99}, {"min_p": 0.01}])
def test_tokens_that_the_model_rules_out_are_never_drawn(fields: dict[str, float]) -> None:
    logits = np.full(100, -np.inf, np.float32)
    logits[[3, 7]] = 0
    sampler = Sampler(Sampling(temperature=2.0, seed=0, **fields), vocab_size=100)  # type: ignore[arg-type]
    assert {sampler.sample(logits).token for _ in range(50)} == {3, 7}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_and_infinite_logits_are_an_error(bad: float, temperature: float) -> None:
    logits = np.array(_logits(1000))
    logits[500] = bad
    sampler = Sampler(Sampling(temperature=temperature), vocab_size=1000)
    for wrong in (logits, np.full(1000, -np.inf, np.float32)):
        with pytest.raises(RunnerError, match="NaN or infinity"):
            sampler.sample(wrong)
        with pytest.raises(RunnerError, match="NaN or infinity"):
            sampler.score(wrong, 0)


def test_logits_of_another_vocabulary_are_an_error() -> None:
    with pytest.raises(RunnerError, match="shape"):
        Sampler(Sampling(), vocab_size=10).sample(_logits(11))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_that_leaves_no_possible_token_is_an_error(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature), vocab_size=40)
    with pytest.raises(EdgekitError, match="has probability 0"):
        sampler.sample(_logits(40), pack(set(), 40))
    logits = np.array(_logits(40))
    logits[7] = -np.inf
    # Once among few allowed tokens, and once where the mask allows most but the model none of them.
    with pytest.raises(EdgekitError, match="has probability 0"):
        sampler.sample(logits, pack({7}, 40))
    logits[1:] = -np.inf
    with pytest.raises(EdgekitError, match="has probability 0"):
        sampler.sample(logits, pack(set(range(1, 40)), 40))


def test_a_mask_for_a_smaller_vocabulary_is_an_error() -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(EdgekitError, match="the model 100"):
            Sampler(Sampling(temperature=temperature), vocab_size=100).sample(_logits(100), pack({1}, 40))


def test_a_mask_changes_a_greedy_choice_only_where_it_forbids_it() -> None:
    logits = _fixed([1.0, 3.0, 2.0, *[0.0] * 40])
    sampler = Sampler(Sampling(temperature=0), vocab_size=43)
    assert sampler.sample(logits, pack({0, 1, 2}, 43)).token == 1
    assert sampler.sample(logits, pack({0, 2}, 43)).token == 2
    assert sampler.sample(logits, pack(set(range(43)) - {1}, 43)).token == 2
    assert sampler.sample(logits, pack({31, 32}, 43)).token == 31


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"seed": 2**64},
        {"logit_bias": {3: float("inf")}},
        {"logit_bias": {3: float("-inf")}},
    ],
)
def test_values_outside_their_ranges_are_rejected(fields: dict[str, float]) -> None:
    with pytest.raises(RequestError) as caught:
        Sampling(**fields)  # type: ignore[arg-type]
    assert caught.value.param == next(iter(fields))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(temperature=0.7, top_p=0.8, top_k=20, seed=1),
        Sampling(temperature=1.0, top_p=0.95, seed=1),
        Sampling(temperature=1.0, typical_p=0.95, frequency_penalty=0.5, repetition_penalty=1.1, seed=1),
    ],
)
def test_a_large_vocabulary_costs_little(sampling: Sampling) -> None:
    logits = _logits(151_936)
    sampler = Sampler(sampling, vocab_size=151_936, prompt=range(2000), top_logprobs=20)
    sampler.sample(logits)
    # benchmarks/sampling.py has the figures; this only notices a loop over the vocabulary.
    assert min(_timed(sampler, logits) for _ in range(10)) < 0.02


def _timed(sampler: Sampler, logits: Logits) -> float:
    started = time.perf_counter()
    sampler.sample(logits)
    return time.perf_counter() - started
