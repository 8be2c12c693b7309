from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.generation.sampling.penalties import Penalties
from edgekit.generation.sampling.sampler import Sampler
from edgekit.generation.types import Sampling
from tests.generation.sampling.reference import penalized

TOKENS = st.lists(st.integers(0, 19), max_size=200)


@given(
    prompt=TOKENS,
    answer=TOKENS,
    presence=st.sampled_from([0.0, 0.5, -1.0]),
    frequency=st.sampled_from([0.0, 0.25, -2.0]),
    repetition=st.sampled_from([1.0, 1.3, 0.5]),
    last=st.sampled_from([-1, 0, 1, 3, 64]),
    bias=st.dictionaries(st.integers(0, 19), st.floats(-100, 100), max_size=5),
)
def test_penalties_match_the_reference(
    *,
    prompt: list[int],
    answer: list[int],
    presence: float,
    frequency: float,
    repetition: float,
    last: int,
    bias: dict[int, float],
) -> None:
    sampling = Sampling(
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        repeat_last_n=last,
        logit_bias=bias,
    )
    logits = np.random.default_rng(0).normal(0, 3, 20).astype(np.float32)
    logits.flags.writeable = False
    penalties = Penalties(sampling, vocab_size=20, prompt=prompt)
    for token in answer:
        penalties.accept(token)
    expected = penalized([float(value) for value in logits], sampling, prompt, answer)
    np.testing.assert_allclose(penalties.apply(logits), expected, rtol=1e-4, atol=1e-4)


def test_without_penalties_the_logits_are_not_even_copied() -> None:
    logits = np.zeros(4, np.float32)
    assert Penalties(Sampling(), vocab_size=4, prompt=[1, 2]).apply(logits) is logits


def test_sampled_and_forced_tokens_count_and_scored_ones_do_not() -> None:
    logits = np.array([3.0, 2.5, 2.0, 1.0], np.float32)
    sampler = Sampler(Sampling(temperature=0, presence_penalty=1.0), vocab_size=4, prompt=[0, 1, 2, 3])
    sampler.score(logits, 0)
    assert sampler.sample(logits).token == 0
    sampler.accept(1)
    # 0 and 1 are penalized by 1 now; the prompt's tokens are not.
    assert [sampler.sample(logits).token for _ in range(2)] == [0, 0]
    often = Sampler(Sampling(temperature=0, frequency_penalty=1.0), vocab_size=4)
    assert [often.sample(logits).token for _ in range(5)] == [0, 1, 0, 2, 1]


def test_a_bias_of_100_decides_and_one_of_minus_100_forbids() -> None:
    logits = np.array([3.0, 2.5, -20.0, 1.0], np.float32)
    assert Sampler(Sampling(temperature=0, logit_bias={2: 100.0}), vocab_size=4).sample(logits).token == 2
    banned = Sampler(Sampling(temperature=2.0, seed=1, logit_bias={0: -100.0}), vocab_size=4)
    assert 0 not in {banned.sample(logits).token for _ in range(200)}


def test_a_bias_on_a_token_outside_the_vocabulary_is_rejected() -> None:
    with pytest.raises(RequestError, match="the vocabulary has 4") as caught:
        Sampler(Sampling(logit_bias={4: 1.0}), vocab_size=4)
    assert caught.value.param == "logit_bias"


def test_the_repetition_window_slides_over_a_long_answer() -> None:
    sampling = Sampling(repetition_penalty=2.0, repeat_last_n=100)
    penalties = Penalties(sampling, vocab_size=1000, prompt=list(range(1000)))
    logits = np.ones(1000, np.float32)
    answer = [int(token) for token in np.random.default_rng(0).integers(0, 1000, 3000)]
    for token in answer:
        penalties.accept(token)
    assert set(np.flatnonzero(penalties.apply(logits) == 0.5)) == set(answer[-100:])
