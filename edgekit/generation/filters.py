"""Which of many values are the largest, the likeliest, the most typical; and the draw. Arrays in, indices out.

It knows no model, no request and no state. Everything is a few passes over the array, whatever it holds; large arrays
are looked at in columns: element i stands in column i modulo the number of columns, so that a reduction over a column
runs over all columns at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["draw", "largest", "nucleus", "softmax_floor", "typical"]

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

# First guess at how many tokens hold the probability that is asked for.
_FIRST = 128
_COLUMN, _SHORT_COLUMN = 64, 16
# Below this, sorting or one running sum is the shorter way.
_FEW = 4096
# Values that are looked at first, to guess where among all a border is.
_SAMPLE = 1024
_SLACK = 4


def softmax_floor(size: int) -> float:
    """How far below the best logit a token may be left out: all that are, together, hold less than 2^-24.

    That is what one step of a float32 near 1 is, so that sums in float32 do not know them either.
    """
    return float(np.log(size) + 24 * np.log(2))


def largest(values: Floats, count: int) -> Indices:
    """Indices of the `count` largest values; of equal ones at the border the first."""
    if count >= values.size:
        return np.arange(values.size)
    for height in (_COLUMN, _SHORT_COLUMN):
        columns = values.size // height
        if count * 4 <= columns:
            break
    else:
        return _above(values, np.partition(values, values.size - count)[values.size - count], count)
    # As many columns as are wanted each have a value at or above this, so that every wanted value is too.
    maxima = values[: columns * height].reshape(height, columns).max(axis=0)
    found = np.flatnonzero(values >= np.partition(maxima, columns - count)[columns - count])
    few = values[found]
    return found[_above(few, np.partition(few, few.size - count)[few.size - count], count)]


def nucleus(weights: Floats, top_p: float) -> Indices:
    """Indices of the fewest weights that together hold `top_p` of all, at least one.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    return _holding(weights, weights, top_p * total(weights))


def typical(scores: Floats, weights: Floats, typical_p: float) -> Indices:
    """Indices of the tokens nearest to the expected surprise that together hold `typical_p`, at least one.

    A token's surprise is -log p = log Z - score, and the entropy, its expectation, is log Z - mean score; so the
    distance between the two is that of the score from the mean score. Source: Meister et al. 2022, "Locally Typical
    Sampling".

    Args:
        scores: Logits over temperature, less the best one's.
        weights: Their exponentials.
        typical_p: Share of the weights.
    """
    everything = total(weights)
    if scores.min() == -np.inf:
        # Any score whose weight is 0 does, if only 0 times it is 0.
        scores = np.maximum(scores, np.float32(-200))
    mean = total(scores * weights) / everything
    nearness = scores - np.float32(mean)
    np.abs(nearness, out=nearness)
    np.negative(nearness, out=nearness)
    return _holding(nearness, weights, typical_p * everything)


def _holding(keys: Floats, weights: Floats, wanted: float) -> Indices:
    """Indices of the fewest elements with the largest keys whose weights come to `wanted`; of equal keys the first.

    Where a few are not enough it is a selection by weight, as Floyd and Rivest's (1975) is by rank: a sample says
    between which keys the border is likely to be, and only what is between them is sorted.
    """
    if keys.size <= _FEW:
        return _sorted(keys, weights, wanted)
    few = largest(keys, _FIRST)
    if total(weights[few]) >= wanted:
        return few[_sorted(keys[few], weights[few], wanted)]
    low, high = _bracket(keys, weights, total(weights) - wanted)
    pool = np.flatnonzero(keys >= low)
    upper = keys[pool] >= high
    kept = pool[np.flatnonzero(upper)]
    inside = total(weights[kept])
    if inside >= wanted:
        kept, group, inside = kept[:0], kept, 0.0
    else:
        group = pool[np.flatnonzero(~upper)]
        between = total(weights[group])
        if inside + between < wanted:
            kept, group, inside = pool, np.flatnonzero(keys < low), inside + between
    # Where nothing divides the keys, most of them being the same, they are sorted.
    again = _holding if group.size <= keys.size // 2 else _sorted
    return np.concatenate([kept, group[again(keys[group], weights[group], wanted - inside)]])


def _sorted(keys: Floats, weights: Floats, wanted: float) -> Indices:
    """The same by sorting; all of them, if all together come to less."""
    order = np.argsort(-keys, kind="stable")
    running = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(running, wanted, side="left")) + 1]


def _bracket(keys: Floats, weights: Floats, unwanted: float) -> tuple[np.float32, np.float32]:
    """Keys that the border is likely to be between, below which weights come to `unwanted`.

    It is found from below: the weights there are small, and a sample tells their sum better.
    """
    # The heaviest decide much and would be missed by a sample: they are all looked at, of the others a few.
    heavy = largest(weights, _FIRST)
    step = keys.size // _SAMPLE
    sampled = weights[::step]
    light = np.flatnonzero(sampled < weights[heavy].min())
    found = np.concatenate([keys[heavy], keys[::step][light]])
    order = np.argsort(found)
    found = found[order]
    shares = np.concatenate([weights[heavy], sampled[light] * np.float32(step)])[order].astype(np.float64)
    running = np.cumsum(shares)
    guess = int(np.searchsorted(running, unwanted))
    # Three standard deviations of what the sample says about the weight below the border.
    margin = 3 * float(np.sqrt((shares[:guess][order[:guess] >= heavy.size] ** 2).sum()))
    first = min(int(np.searchsorted(running, unwanted - margin)) - _SLACK, found.size - 1)
    last = int(np.searchsorted(running, unwanted + margin)) + _SLACK
    return found[first] if first > 0 else np.float32(-np.inf), found[last] if last < found.size else np.float32(np.inf)


def _above(keys: Floats, border: np.float32, count: int) -> Indices:
    """Indices of the `count` largest keys, the smallest of which is `border`."""
    found = np.flatnonzero(keys >= border)
    if found.size == count:
        return found
    above = np.flatnonzero(keys > border)
    equal = np.flatnonzero(keys == border)
    return np.concatenate([above, equal[: count - above.size]])


def total(values: Floats) -> float:
    """The sum, in pairs, so that its error does not grow with the size (numpy's own way along one axis)."""
    return float(values.sum())


def draw(weights: Floats, chance: float) -> int:
    """Index of the weight that `chance`, in [0, 1), falls on; never one that is 0.

    The weights stand one after the other, column by column, and need not add up to 1.
    """
    if weights.size <= _FEW:
        running = np.cumsum(weights, dtype=np.float64)
        return _fall(running, chance * running[-1])[0]
    # First the column, then the place in it: a running sum over all would take several times as long.
    columns = weights.size // _COLUMN
    # What is left over is less than a row, and belongs to the first columns.
    whole = weights.size // columns * columns
    sums = weights[:whole].reshape(-1, columns).sum(axis=0)
    sums[: weights.size - whole] += weights[whole:]
    running = np.cumsum(sums, dtype=np.float64)
    column, inside = _fall(running, chance * running[-1])
    row, _ = _fall(np.cumsum(weights[column::columns], dtype=np.float64), inside)
    return row * columns + column


def _fall(running: npt.NDArray[np.float64], wanted: float) -> tuple[int, float]:
    """Where `wanted` falls in a running sum, and how far into it."""
    # Rounding may point past the end: the last one that is not 0 is meant.
    index = min(int(np.searchsorted(running, wanted, side="right")), int(np.searchsorted(running, running[-1])))
    return index, wanted - (float(running[index - 1]) if index else 0.0)
