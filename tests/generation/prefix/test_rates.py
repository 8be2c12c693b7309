from __future__ import annotations

import pytest

from edgekit.generation.prefix.rates import Rates


def test_restoring_is_tried_until_both_rates_were_measured() -> None:
    rates = Rates()
    assert rates.should_restore("disk")
    rates.fetched("disk", 10, 100.0)
    assert rates.should_restore("disk")
    rates.computed(10, 1.0)
    assert not rates.should_restore("disk")
    assert rates.should_restore("memory")


def test_a_slow_source_is_tried_again_after_a_minute_and_used_when_it_has_become_faster() -> None:
    now = 0.0
    rates = Rates(lambda: now)
    rates.computed(100, 1.0)
    rates.fetched("disk", 100, 2.0)
    assert not rates.should_restore("disk")
    now = 61.0
    assert rates.should_restore("disk")
    for _ in range(8):
        rates.fetched("disk", 100, 0.1)
    assert rates.should_restore("disk")


def test_one_stall_is_forgotten_within_a_few_steps() -> None:
    rates = Rates()
    rates.computed(100, 1.0)
    for seconds in (0.1, 0.1, 3.0, 0.1, 0.1):
        rates.fetched("disk", 100, seconds)
    assert rates.should_restore("disk")


def test_the_time_to_compute_follows_the_tokens() -> None:
    rates = Rates()
    assert rates.compute_s(1) is None
    rates.computed(0, 5.0)
    assert rates.compute_s(1) is None
    rates.computed(50, 1.0)
    assert rates.compute_s(200) == pytest.approx(4.0)


def test_restoring_that_takes_as_long_as_computing_does_not_pay_off_and_a_minute_is_not_yet_over() -> None:
    now = 0.0
    rates = Rates(lambda: now)
    rates.computed(100, 1.0)
    rates.fetched("disk", 100, 1.0)
    assert not rates.should_restore("disk")
    now = 60.0
    assert not rates.should_restore("disk")
    now = 60.1
    assert rates.should_restore("disk")


def test_the_newest_measurement_counts_half_and_one_without_tokens_not_at_all() -> None:
    rates = Rates()
    rates.computed(10, 1.0)
    rates.computed(10, 3.0)
    assert rates.compute_s(10) == pytest.approx(2.0)
    rates.fetched("disk", 10, 1.0)
    rates.fetched("disk", 0, 900.0)
    assert rates.should_restore("disk")
    rates.fetched("disk", 10, 2.9)
    assert rates.should_restore("disk"), "1.95 s on average"
    rates.fetched("disk", 10, 2.2)
    assert not rates.should_restore("disk"), "2.075 s on average"
    rates.computed(1, 0.4)
    assert rates.compute_s(1) == pytest.approx(0.3)
