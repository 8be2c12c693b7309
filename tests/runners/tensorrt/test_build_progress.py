"""The share of a build, from phases and processor times recorded with NVIDIA's builder."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from edgekit.runners.tensorrt.build_progress import Pace, PhaseShares, expected_seconds

# TensorRT-RTX 1.7.1 building 12 layers for SM86 beside other work: processor time in seconds, phase, and the number of
# steps or the index of the finished one. Nested phases that take no time are left out.
RECORDED: list[tuple[float, str, str, str | None, int]] = [
    (1.10, "start", "Building engine", None, 6),
    (1.18, "step", "Building engine", None, 0),
    (1.42, "step", "Building engine", None, 3),
    (1.42, "start", "Building engine from subgraph", "Building engine", 1),
    (1.52, "start", "Computing profile costs", "Building engine from subgraph", 10),
    *[(1.54, "step", "Computing profile costs", None, index) for index in range(3)],
    (7.91, "step", "Computing profile costs", None, 3),
    (8.08, "step", "Computing profile costs", None, 4),
    *[(8.20, "step", "Computing profile costs", None, index) for index in range(5, 8)],
    (16.81, "step", "Computing profile costs", None, 8),
    (17.11, "step", "Computing profile costs", None, 9),
    (17.27, "step", "Building engine from subgraph", None, 0),
    (17.27, "step", "Building engine", None, 4),
]


def followed(expected_s: float, *, speed: float = 1.0, profiles: int = 2) -> Iterator[tuple[float, float]]:
    """The shares that a caller sees of the recorded build, twice a second, with the processor time."""
    shares, pace, ticks = PhaseShares(profiles), Pace(expected_s), 0
    for at, kind, phase, parent, number in RECORDED:
        while ticks * 0.5 < at * speed:
            ticks += 1
            yield ticks * 0.5, pace.tick(ticks * 0.5)
        if kind == "start":
            shares.start(phase, parent, number)
        else:
            shares.step(phase, number)
        yield at * speed, pace.report(shares.share, shares.until, at * speed)


def test_the_share_of_a_recorded_build_follows_its_time_with_what_such_a_build_is_expected_to_take() -> None:
    expected = expected_seconds(layers=12, graph_bytes=92 << 20, profiles=2)
    seen = list(followed(expected))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert 0.98 <= shares[-1] < 1
    assert max(after - before for before, after in pairwise(shares)) < 0.1
    for at, share in seen:
        assert share == pytest.approx((at - 1.1) / 16.4, abs=0.12)


@pytest.mark.parametrize("wrong", [0.25, 0.5, 2.0, 4.0])
def test_a_wrong_expectation_is_corrected_by_the_first_profile_and_the_share_never_falls(wrong: float) -> None:
    expected = wrong * expected_seconds(layers=12, graph_bytes=92 << 20, profiles=2)
    seen = list(followed(expected))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    # It goes on all the time, if ever more slowly.
    ticks = [(at, share) for at, share in seen if 2 < at < 16 and at % 0.5 == 0]
    assert len({round(share, 9) for _, share in ticks}) == len(ticks)
    for at, share in ticks:
        if at > 8.5:
            assert share == pytest.approx((at - 1.1) / 16.4, abs=0.12)
        else:
            assert share < 0.5, "not beyond what the builder has still to report"


def test_a_builder_that_computes_nothing_stands_still() -> None:
    pace = Pace(20.0)
    pace.report(0.02, 0.5, 1.0)
    assert pace.tick(5.0) > 0.1
    assert len({pace.tick(5.0) for _ in range(100)}) == 1


def test_another_number_of_steps_counts_each_alike_and_several_subgraphs_share_the_build() -> None:
    shares, seen = PhaseShares(3), []
    shares.start("Building engine", None, 6)
    shares.start("Building engine from subgraph", "Building engine", 2)
    for subgraph in range(2):
        shares.start("Computing profile costs", "Building engine from subgraph", 4)
        for index in range(4):
            shares.step("Computing profile costs", index)
            seen.append(shares.share)
            assert shares.share <= shares.until
        shares.step("Building engine from subgraph", subgraph)
    assert seen == pytest.approx([0.02 + 0.96 * part / 8 for part in range(1, 9)])
    assert shares.until == 1.0


def test_a_library_that_reports_nothing_known_gets_no_share_before_the_end() -> None:
    shares = PhaseShares(2)
    shares.start("Something else", None, 4)
    shares.step("Something else", 3)
    shares.step("Computing profile costs", 0)
    assert 0.0 <= shares.share <= 1.0
