from __future__ import annotations

import pytest

from edgekit.generation.prefix.pace import Pace


def test_fetching_is_tried_until_both_sides_were_seen() -> None:
    pace = Pace()
    assert pace.pays("disk")
    pace.fetched("disk", 10, 100.0)
    assert pace.pays("disk")
    pace.computed(10, 1.0)
    assert not pace.pays("disk")
    assert pace.pays("memory")


def test_a_source_that_lost_is_tried_again_after_a_minute_and_wins_when_it_has_become_faster() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    pace.computed(100, 1.0)
    pace.fetched("disk", 100, 2.0)
    assert not pace.pays("disk")
    now = 61.0
    assert pace.pays("disk")
    for _ in range(8):
        pace.fetched("disk", 100, 0.1)
    assert pace.pays("disk")


def test_one_stall_is_forgotten_within_a_few_steps() -> None:
    pace = Pace()
    pace.computed(100, 1.0)
    for seconds in (0.1, 0.1, 3.0, 0.1, 0.1):
        pace.fetched("disk", 100, seconds)
    assert pace.pays("disk")


def test_the_time_to_compute_follows_the_tokens() -> None:
    pace = Pace()
    assert pace.to_compute(1) is None
    pace.computed(0, 5.0)
    assert pace.to_compute(1) is None
    pace.computed(50, 1.0)
    assert pace.to_compute(200) == pytest.approx(4.0)
