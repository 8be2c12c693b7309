"""Chooses which tensors get more bits within a byte budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["allocate"]

# Resolution of the dynamic program: the solution is exact if all costs are multiples of budget / _STEPS.
_STEPS = 20_000


def allocate(costs: Sequence[int], gains: Sequence[float], budget: int) -> npt.NDArray[np.bool_]:
    """Choose the tensors to give more bits: the 0/1 knapsack problem, by dynamic programming.

    Args:
        costs: Extra bytes of each tensor, not negative.
        gains: The quality each tensor regains with more bits; one that gains nothing is never chosen.
        budget: Extra bytes available.

    Returns:
        For each tensor whether to choose it. The costs sum to at most the budget. Costs are rounded up to
        1/20000 of the budget, so the total gain is optimal up to that rounding; if the greedy choice by gain per
        byte is better, that one is returned.

    Raises:
        ValueError: A cost is negative, or the numbers of costs and gains differ.
    """
    cost, gain = np.asarray(costs, dtype=np.int64), np.asarray(gains, dtype=np.float64)
    if cost.shape != gain.shape or (cost < 0).any():
        raise ValueError("each cost needs a gain, and costs must not be negative")
    useful = (gain > 0) & (cost <= budget)
    if cost[useful].sum() <= budget:
        return useful
    exact, greedy = _dynamic_program(cost, gain, useful, budget), _greedy(cost, gain, useful, budget)
    return exact if gain[exact].sum() >= gain[greedy].sum() else greedy


def _greedy(
    cost: npt.NDArray[np.int64], gain: npt.NDArray[np.float64], useful: npt.NDArray[np.bool_], budget: int
) -> npt.NDArray[np.bool_]:
    chosen = np.zeros(len(cost), dtype=bool)
    left = budget
    for index in map(int, np.argsort(-gain / np.maximum(cost, 1), kind="stable")):
        if useful[index] and cost[index] <= left:
            chosen[index] = True
            left -= int(cost[index])
    return chosen


def _dynamic_program(
    cost: npt.NDArray[np.int64], gain: npt.NDArray[np.float64], useful: npt.NDArray[np.bool_], budget: int
) -> npt.NDArray[np.bool_]:
    step = -(-budget // _STEPS)
    capacity = budget // step
    steps = -(-cost // step)
    best = np.zeros(capacity + 1)
    taken: dict[int, npt.NDArray[np.bool_]] = {}
    for index in map(int, np.flatnonzero(useful & (steps <= capacity))):
        size = int(steps[index])
        with_it = np.full(capacity + 1, -np.inf)
        with_it[size:] = best[: capacity + 1 - size] + gain[index]
        taken[index] = with_it > best
        best = np.maximum(best, with_it)
    chosen = np.zeros(len(cost), dtype=bool)
    left = capacity
    for index in reversed(taken):
        if taken[index][left]:
            chosen[index] = True
            left -= int(steps[index])
    return chosen
