from __future__ import annotations

import pytest

from edgekit.generation.speculative.acceptance import AcceptanceRate


def test_the_prior_counts_as_two_draft_tokens() -> None:
    rate = AcceptanceRate(0.5)
    assert rate.value == 0.5
    rate.learn(2, 2)
    assert rate.value == pytest.approx((2 * 0.5 + 2) / (2 + 2))
    rate = AcceptanceRate(0.7)
    rate.learn(8, 0)
    assert rate.value == pytest.approx(2 * 0.7 / (2 + 8))


def test_recent_draft_tokens_count_most() -> None:
    early, late = AcceptanceRate(0.5), AcceptanceRate(0.5)
    early.learn(10, 10)
    early.learn(10, 0)
    late.learn(10, 0)
    late.learn(10, 10)
    assert early.value < 0.5 < late.value
    # Each new one takes 3 % of the weight of those before it.
    assert early.value == pytest.approx((1 + 10 * 0.97**10) / (2 + 10 * 0.97**10 + 10))


def test_the_rate_approaches_that_of_a_long_sequence() -> None:
    rate = AcceptanceRate(0.9)
    for _ in range(200):
        rate.learn(4, 1)
    assert rate.value == pytest.approx(0.25, abs=0.06)
    assert 0 < rate.value < 1
