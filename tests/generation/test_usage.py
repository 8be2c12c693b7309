from __future__ import annotations

import pytest

from edgekit.generation.usage import Timings, Usage


def test_totals_are_sums() -> None:
    assert Usage(30, 12).total_tokens == 42
    assert Timings(0.5, 0.25, 4).first_token_s == 0.75


@pytest.mark.parametrize(
    ("usage", "timings", "rates"),
    [
        # Reused tokens are not computed, and prefill yields the first token.
        (
            Usage(30, 11, cached_tokens=10),
            Timings(0, 2, 5),
            {"prompt_tokens_per_s": 10, "decode_tokens_per_s": 2},
        ),
        (Usage(30, 2), Timings(0, 2, 0.5), {"prompt_tokens_per_s": 15, "decode_tokens_per_s": 2}),
        (Usage(30, 1), Timings(0, 2, 5), {"prompt_tokens_per_s": 15}),
        (Usage(30, 2, cached_tokens=30), Timings(0, 2, 4), {"decode_tokens_per_s": 0.25}),
        (Usage(30, 11), Timings(0, 0, 0), {}),
    ],
)
def test_a_rate_is_reported_if_it_was_measured(usage: Usage, timings: Timings, rates: dict[str, float]) -> None:
    assert timings.as_rates(usage) == rates
