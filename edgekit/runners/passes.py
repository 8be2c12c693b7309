"""Which sequence slots go through the model together: a step is cut into passes over neighbouring slots.

A pass reads all weights once, whatever it computes; every slot in it has as many rows as the longest of them, slots
between them that have nothing to do included. So it may pay to run slots apart. It knows no runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

__all__ = ["Pass", "plan_passes"]

# Rows that cost as much as a pass with none: SmolLM2-135M on two cores with AVX-512, 13 ms and 4 ms for a row.
_PASS = 3


@dataclass(frozen=True, slots=True)
class Pass:
    """Slots `low` to `high - 1`, with `rows` rows each."""

    low: int
    high: int
    rows: int


def plan_passes(rows: Mapping[int, int], room: Sequence[int], *, together: int) -> list[Pass]:
    """Return the passes that cost least.

    Args:
        rows: Rows of each slot that has tokens.
        room: Rows that each slot's buffers have room for, behind what it holds.
        together: Most rows per slot in a pass over several slots.
    """
    slots = sorted(rows)
    costs: list[int] = [0]
    plans: list[list[Pass]] = [[]]
    # Of the first n slots: the cheapest plan of some, and one pass over the rest.
    for end in range(1, len(slots) + 1):
        high, most, ways = slots[end - 1] + 1, 0, []
        for start in reversed(range(end)):
            low, most = slots[start], max(most, rows[slots[start]])
            if start < end - 1 and (most > together or min(room[low:high]) < most):
                break
            ways.append((costs[start] + _PASS + (high - low) * most, start, Pass(low, high, most)))
        cost, start, last = min(ways, key=itemgetter(0))
        costs.append(cost)
        plans.append([*plans[start], last])
    return plans[-1]
