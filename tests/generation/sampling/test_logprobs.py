from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.sampling.sampler import Sampler
from edgekit.generation.types import Sampling
from tests.generation.sampling.reference import pack


def _log_softmax(logits: list[float]) -> list[float]:
    best = max(logits)
    normalizer = best + math.log(math.fsum(math.exp(value - best) for value in logits))
    return [value - normalizer for value in logits]


@given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=500), st.integers(0, 20))
def test_logprobs_are_the_log_softmax_and_the_top_ones_come_best_first(values: list[float], top: int) -> None:
    logits = np.array(values, np.float32)
    expected = _log_softmax(values)
    sampler = Sampler(Sampling(seed=1), vocab_size=len(values), top_logprobs=top)
    for sampled in (sampler.sample(logits), sampler.score(logits, len(values) - 1)):
        assert sampled.logprob == pytest.approx(expected[sampled.token], abs=3e-6)
        order = sorted(range(len(values)), key=lambda token: (-values[token], token))[:top]
        assert [token for token, _ in sampled.top] == order
        assert [logprob for _, logprob in sampled.top] == pytest.approx([expected[token] for token in order], abs=3e-6)


def test_a_large_vocabulary_has_the_same_precision() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 151_936).astype(np.float32)
    expected = _log_softmax([float(value) for value in logits])
    choice = Sampler(Sampling(temperature=0), vocab_size=logits.size, top_logprobs=20).sample(logits)
    order = sorted(range(logits.size), key=lambda token: -expected[token])[:20]
    assert [token for token, _ in choice.top] == order
    assert [logprob for _, logprob in choice.top] == pytest.approx([expected[token] for token in order], abs=1e-6)


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = np.array([3.0, 1.0, 0.5, -1.0], np.float32)
    expected = _log_softmax([3.0, 1.0, 0.5, -1.0])
    sampling = Sampling(temperature=0.3, logit_bias={1: 50.0}, presence_penalty=2.0, repetition_penalty=1.5, seed=1)
    sampler = Sampler(sampling, vocab_size=4, prompt=[0, 1], top_logprobs=2)
    choice = sampler.sample(logits, pack({1, 3}, 4))
    assert choice.token == 1
    assert choice.logprob == pytest.approx(expected[1], abs=1e-6)
    assert [token for token, _ in choice.top] == [0, 1]


def test_nothing_is_computed_that_was_not_requested() -> None:
    logits = np.zeros(4, np.float32)
    assert Sampler(Sampling(temperature=0), vocab_size=4).sample(logits).logprob is None
    only = Sampler(Sampling(temperature=0), vocab_size=4, top_logprobs=0).sample(logits)
    assert only.logprob == pytest.approx(math.log(0.25))
    assert only.top == ()


def test_a_token_with_probability_zero_has_logprob_minus_infinity() -> None:
    logits = np.array([0.0, -np.inf], np.float32)
    assert Sampler(Sampling(), vocab_size=2, top_logprobs=2).score(logits, 1).logprob == -math.inf
