from __future__ import annotations

import itertools

import numpy as np

from edgekit.runners.passes import Pass, plan_passes

FREE_ROWS = [100] * 8


def test_single_tokens_of_neighbours_share_a_pass() -> None:
    assert plan_passes({0: 1, 1: 1, 2: 1}, FREE_ROWS, max_batched_rows=1) == [Pass(0, 3, 1)]


def test_a_short_gap_is_bridged_and_a_long_one_is_not() -> None:
    assert plan_passes({1: 1, 3: 1}, FREE_ROWS, max_batched_rows=1) == [Pass(1, 4, 1)]
    assert plan_passes({0: 1, 7: 1}, FREE_ROWS, max_batched_rows=1) == [Pass(0, 1, 1), Pass(7, 8, 1)]


def test_a_prompt_runs_apart_from_single_tokens() -> None:
    plan = plan_passes({0: 1, 1: 512, 2: 1, 3: 1}, [1000] * 4, max_batched_rows=32)
    assert plan == [Pass(0, 1, 1), Pass(1, 2, 512), Pass(2, 4, 1)]


def test_slots_do_not_share_a_pass_where_the_graph_does_not_allow_it() -> None:
    assert plan_passes({0: 2, 1: 2}, FREE_ROWS, max_batched_rows=1) == [Pass(0, 1, 2), Pass(1, 2, 2)]
    assert plan_passes({0: 1, 1: 1}, FREE_ROWS, max_batched_rows=0) == [Pass(0, 1, 1), Pass(1, 2, 1)]


def test_a_slot_without_free_rows_is_not_bridged() -> None:
    assert plan_passes({0: 2, 2: 2}, [9, 1, 9], max_batched_rows=32) == [Pass(0, 1, 2), Pass(2, 3, 2)]


def test_no_other_division_into_passes_is_cheaper_and_every_slot_is_in_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = {int(slot): int(rng.choice([1, 2, 6, 40])) for slot in rng.permutation(8)[: rng.integers(1, 8)]}
        plan, slots = plan_passes(rows, FREE_ROWS, max_batched_rows=32), sorted(rows)
        assert [slot for one in plan for slot in range(one.low, one.high) if slot in rows] == slots
        cost = sum(3 + (one.high - one.low) * one.rows for one in plan)
        for cuts in itertools.product([False, True], repeat=len(slots) - 1):
            groups, other = [[slots[0]]], 0
            for slot, cut in zip(slots[1:], cuts, strict=True):
                if cut:
                    groups.append([])
                groups[-1].append(slot)
            for group in groups:
                longest = max(rows[slot] for slot in group)
                other += 3 + (group[-1] + 1 - group[0]) * longest if len(group) == 1 or longest <= 32 else 10**6
            assert cost <= other
