"""Divides a step into passes, each over a range of neighbouring sequence slots.

A pass reads all weights once. Every slot in its range, idle ones included, is padded to the rows of the longest. So it
can be cheaper to run slots in separate passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

__all__ = ["Pass", "plan_passes"]

# Fixed cost of a pass, in rows: SmolLM2-135M on two cores with AVX-512 takes 13 ms, and 4 ms per row.
_PASS_COST = 3


@dataclass(frozen=True, slots=True)
class Pass:
    """Slots `low` to `high - 1`, with `rows` rows each."""

    low: int
    high: int
    rows: int


def plan_passes(rows: Mapping[int, int], free_rows: Sequence[int], *, max_batched_rows: int) -> list[Pass]:
    """Return the cheapest passes.

    Args:
        rows: Rows of each slot that has tokens.
        free_rows: Rows that still fit into each slot's buffers.
        max_batched_rows: Maximum rows per slot in a pass over several slots.
    """
    slots = sorted(rows)
    costs: list[int] = [0]
    plans: list[list[Pass]] = [[]]
    # Dynamic programming: the first n slots are the cheapest plan of a prefix, and one pass over the others.
    for end in range(1, len(slots) + 1):
        high, longest, options = slots[end - 1] + 1, 0, []
        for start in reversed(range(end)):
            low, longest = slots[start], max(longest, rows[slots[start]])
            if start < end - 1 and (longest > max_batched_rows or min(free_rows[low:high]) < longest):
                break
            options.append((costs[start] + _PASS_COST + (high - low) * longest, start, Pass(low, high, longest)))
        cost, start, last = min(options, key=itemgetter(0))
        costs.append(cost)
        plans.append([*plans[start], last])
    return plans[-1]
