"""Sampling filters as pure array functions: top-k, nucleus (top_p), typical, and the draw. Arrays in, indices out.

Each takes a few passes over the array, whatever its contents. Large arrays are processed in columns: element i is in
column i modulo the number of columns, so that a reduction over a column runs over all columns at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["draw", "largest", "nucleus", "softmax_floor", "typical"]

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

# Number of top tokens that are tried first: they often hold the requested probability.
_TOP = 128
_COLUMN, _SHORT_COLUMN = 64, 16
# Up to this size, sorting or one running sum is faster.
_SMALL = 4096
# Sample size for estimating the threshold.
_SAMPLE = 1024
_SLACK = 4


def softmax_floor(size: int) -> float:
    """Return a distance below the best logit; all tokens further down together have probability less than 2^-24.

    That is the spacing of float32 values just below 1, so float32 sums do not resolve it either.
    """
    return float(np.log(size) + 24 * np.log(2))


def largest(values: Floats, count: int) -> Indices:
    """Return the indices of the `count` largest values; ties at the threshold go to the first."""
    if count >= values.size:
        return np.arange(values.size)
    for height in (_COLUMN, _SHORT_COLUMN):
        columns = values.size // height
        if count * 4 <= columns:
            break
    else:
        return _above(values, np.partition(values, values.size - count)[values.size - count], count)
    # `count` columns have a maximum at or above this threshold, so every one of the largest values is too.
    maxima = values[: columns * height].reshape(height, columns).max(axis=0)
    found = np.flatnonzero(values >= np.partition(maxima, columns - count)[columns - count])
    candidates = values[found]
    return found[_above(candidates, np.partition(candidates, candidates.size - count)[candidates.size - count], count)]


def nucleus(weights: Floats, top_p: float) -> Indices:
    """Return the indices of the smallest set of weights that adds up to `top_p` of the total, at least one.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    return _smallest_set(weights, weights, top_p * total(weights))


def typical(scores: Floats, weights: Floats, typical_p: float) -> Indices:
    """Return the indices of the tokens closest to the entropy that add up to `typical_p`, at least one.

    A token's information content is -log p = log Z - score, and its expectation, the entropy, is log Z - mean score; so
    the distance between the two is that of the score from the mean score. Source: Meister et al. 2022, "Locally Typical
    Sampling".

    Args:
        scores: Logits divided by the temperature, minus the maximum.
        weights: Their exponentials.
        typical_p: Share of the total weight.
    """
    sum_of_weights = total(weights)
    if scores.min() == -np.inf:
        # Any finite score with weight 0 will do: it keeps score · weight from being NaN.
        scores = np.maximum(scores, np.float32(-200))
    mean = total(scores * weights) / sum_of_weights
    nearness = scores - np.float32(mean)
    np.abs(nearness, out=nearness)
    np.negative(nearness, out=nearness)
    return _smallest_set(nearness, weights, typical_p * sum_of_weights)


def _smallest_set(keys: Floats, weights: Floats, target: float) -> Indices:
    """Return the indices of the fewest elements with the largest keys whose weights add up to `target`.

    Ties go to the first. If the top tokens are not enough, this is a selection by weight, as Floyd and Rivest's (1975)
    is by rank: a sample gives a bracket that is likely to contain the threshold, and only keys inside it are sorted.
    """
    if keys.size <= _SMALL:
        return _sorted(keys, weights, target)
    top = largest(keys, _TOP)
    if total(weights[top]) >= target:
        return top[_sorted(keys[top], weights[top], target)]
    low, high = _bracket(keys, weights, total(weights) - target)
    pool = np.flatnonzero(keys >= low)
    upper = keys[pool] >= high
    kept = pool[np.flatnonzero(upper)]
    inside = total(weights[kept])
    if inside >= target:
        kept, group, inside = kept[:0], kept, 0.0
    else:
        group = pool[np.flatnonzero(~upper)]
        between = total(weights[group])
        if inside + between < target:
            kept, group, inside = pool, np.flatnonzero(keys < low), inside + between
    # If the bracket hardly narrows them, because most keys are equal, they are sorted.
    again = _smallest_set if group.size <= keys.size // 2 else _sorted
    return np.concatenate([kept, group[again(keys[group], weights[group], target - inside)]])


def _sorted(keys: Floats, weights: Floats, target: float) -> Indices:
    """The same by sorting; all elements if their total is less."""
    order = np.argsort(-keys, kind="stable")
    running = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(running, target, side="left")) + 1]


def _bracket(keys: Floats, weights: Floats, excluded: float) -> tuple[np.float32, np.float32]:
    """Two keys that likely enclose the threshold, below which weights add up to `excluded`.

    It is estimated from below: the weights there are small, and a sample estimates their sum better.
    """
    # The heaviest matter most and a sample would miss them, so all of them are included, and a sample of the rest.
    heavy = largest(weights, _TOP)
    step = keys.size // _SAMPLE
    sampled = weights[::step]
    light = np.flatnonzero(sampled < weights[heavy].min())
    found = np.concatenate([keys[heavy], keys[::step][light]])
    order = np.argsort(found)
    found = found[order]
    shares = np.concatenate([weights[heavy], sampled[light] * np.float32(step)])[order].astype(np.float64)
    running = np.cumsum(shares)
    estimate = int(np.searchsorted(running, excluded))
    # Three standard deviations of the sampled weight below the threshold.
    margin = 3 * float(np.sqrt((shares[:estimate][order[:estimate] >= heavy.size] ** 2).sum()))
    first = min(int(np.searchsorted(running, excluded - margin)) - _SLACK, found.size - 1)
    last = int(np.searchsorted(running, excluded + margin)) + _SLACK
    return found[first] if first > 0 else np.float32(-np.inf), found[last] if last < found.size else np.float32(np.inf)


def _above(keys: Floats, threshold: np.float32, count: int) -> Indices:
    """Return the indices of the `count` largest keys, the smallest of which is `threshold`."""
    found = np.flatnonzero(keys >= threshold)
    if found.size == count:
        return found
    above = np.flatnonzero(keys > threshold)
    equal = np.flatnonzero(keys == threshold)
    return np.concatenate([above, equal[: count - above.size]])


def total(values: Floats) -> float:
    """Return the pairwise sum, whose error does not grow with the size (numpy's own algorithm along one axis)."""
    return float(values.sum())


def draw(weights: Floats, uniform: float) -> int:
    """Return the index of the weight that `uniform`, in [0, 1), selects; never one that is 0.

    The weights are laid out one after the other, column by column, and need not add up to 1.
    """
    if weights.size <= _SMALL:
        running = np.cumsum(weights, dtype=np.float64)
        return _locate(running, uniform * running[-1])[0]
    # First the column, then the row: a running sum over all elements would take several times as long.
    columns = weights.size // _COLUMN
    # The remainder is less than a row, and belongs to the first columns.
    full_rows = weights.size // columns * columns
    sums = weights[:full_rows].reshape(-1, columns).sum(axis=0)
    sums[: weights.size - full_rows] += weights[full_rows:]
    running = np.cumsum(sums, dtype=np.float64)
    column, offset = _locate(running, uniform * running[-1])
    row, _ = _locate(np.cumsum(weights[column::columns], dtype=np.float64), offset)
    return row * columns + column


def _locate(running: npt.NDArray[np.float64], value: float) -> tuple[int, float]:
    """Return the element of a running sum that contains `value`, and the offset within it."""
    # Rounding may point past the end: then take the last weight that is not 0.
    index = min(int(np.searchsorted(running, value, side="right")), int(np.searchsorted(running, running[-1])))
    return index, value - (float(running[index - 1]) if index else 0.0)
