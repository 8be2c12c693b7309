"""Mixed bits: which tensors get more bits when bytes are limited. It does not know how an effect was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["allocate"]

# Steps that the budget is counted in: a choice is exact where all sizes are multiples of a step.
_STEPS = 20_000


def allocate(sizes: Sequence[int], effects: Sequence[float], budget: int) -> npt.NDArray[np.bool_]:
    """Choose the tensors whose widening helps most within a budget: the 0/1 knapsack, by dynamic programming.

    Args:
        sizes: Bytes that widening each tensor costs, not negative.
        effects: What widening it gains, the quality lost without it; one that gains nothing is never widened.
        budget: Bytes that may be spent.

    Returns:
        For each tensor whether to widen it. The sizes sum to at most the budget. Sizes are rounded up to
        1/20000 of the budget, so the gain is the greatest possible but for that; where the simple way, most
        effect per byte first, finds a better choice, that one is returned.

    Raises:
        ValueError: A size is negative, or there are not as many effects as sizes.
    """
    cost, gain = np.asarray(sizes, dtype=np.int64), np.asarray(effects, dtype=np.float64)
    if cost.shape != gain.shape or (cost < 0).any():
        raise ValueError("each size needs an effect, and none may be negative")
    useful = (gain > 0) & (cost <= budget)
    if cost[useful].sum() <= budget:
        return useful
    programmed, greedy = _programmed(cost, gain, useful, budget), _greedy(cost, gain, useful, budget)
    return programmed if gain[programmed].sum() >= gain[greedy].sum() else greedy


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


def _programmed(
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
