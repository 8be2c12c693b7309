"""Logits to the next token, in numpy. It knows no model and no text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError
from edgekit.generation.request import Sampling

__all__ = ["Sampler"]

Logits = npt.NDArray[np.float32]

# First guess at how many tokens hold the probability that top_p asks for; it grows until they do.
_NUCLEUS = 128
# The largest of many values are looked for among the largest of blocks of this many.
_BLOCK = 64
# Colder than this, float32 cannot tell the second token from none.
_COLD = 1e-6


class Sampler:
    """Chooses the tokens of one answer: temperature, then top_k, top_p and min_p, then a draw.

    Args:
        sampling: With a seed, the same logits give the same tokens.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        seed = sampling.seed
        # A seed may be negative in the OpenAI API; numpy wants a natural number.
        self._random = np.random.Generator(np.random.PCG64(None if seed is None else seed & (2**64 - 1)))

    def choose(self, logits: Logits) -> int:
        """Return a token id.

        Args:
            logits: float32 `[vocab]`; they are not changed.

        Raises:
            RunnerError: They hold NaN or infinity, or no token is possible.
        """
        # argmax finds the first NaN where there is one, so one pass serves the check and the greedy choice.
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise RunnerError("the model computed logits that are not numbers", hint="check it: edgekit verify DIR")
        if self._sampling.temperature < _COLD or self._sampling.top_k == 1:
            return best
        ids, weights = self._candidates(logits, float(logits[best]))
        index = _draw(weights, self._random.random())
        return index if ids is None else int(ids[index])

    def _candidates(self, logits: Logits, best: float) -> tuple[npt.NDArray[np.intp] | None, Logits]:
        """The tokens that may be drawn (None: all) and their weights, which need not add up to 1."""
        sampling = self._sampling
        ids: npt.NDArray[np.intp] | None = None
        if 0 < sampling.top_k < logits.size:
            ids = _largest(logits, sampling.top_k)
            logits = logits[ids]
        # Beside the best token the rest may underflow to 0, which is what a small temperature asks for.
        with np.errstate(under="ignore", over="ignore"):
            weights = np.exp((logits - np.float32(best)) / np.float32(sampling.temperature))
        if sampling.top_p < 1:
            kept = _nucleus(weights, sampling.top_p)
            ids = kept if ids is None else ids[kept]
            weights = weights[kept]
        if sampling.min_p > 0:
            # The best token's weight is exactly 1.
            kept = np.flatnonzero(weights >= sampling.min_p)
            ids = kept if ids is None else ids[kept]
            weights = weights[kept]
        return ids, weights


def _draw(weights: Logits, chance: float) -> int:
    """Index of the weight that `chance`, in [0, 1), falls on."""
    # First the block, then the place in it: one pass over a large vocabulary instead of a running sum.
    starts = np.arange(0, weights.size, _BLOCK)
    running = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    # Below the end even after rounding, so that a block is found and it is not one of zeros.
    wanted = min(chance * running[-1], np.nextafter(running[-1], 0.0))
    block = int(np.searchsorted(running, wanted, side="right"))
    inside = np.cumsum(weights[starts[block] : starts[block] + _BLOCK], dtype=np.float64)
    before = running[block - 1] if block else 0.0
    index = int(np.searchsorted(inside, wanted - before, side="right"))
    # Rounding may point past the block; its last weight that is not 0 is meant.
    return int(starts[block]) + (index if index < inside.size else int(np.searchsorted(inside, inside[-1])))


def _largest(values: Logits, count: int) -> npt.NDArray[np.intp]:
    """Ids of the `count` largest values, ascending; of equal ones at the border the first."""
    blocks = values.size // _BLOCK
    if count > blocks:
        return _largest_of(values, np.arange(values.size), count)
    # As many blocks as are wanted each have a value at or above this, so that every wanted value is too.
    maxima = values[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
    bound = np.partition(maxima, blocks - count)[blocks - count]
    ids = np.flatnonzero(values >= bound)
    return _largest_of(values[ids], ids, count)


def _largest_of(values: Logits, ids: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.intp]:
    border = np.partition(values, values.size - count)[values.size - count]
    above = np.flatnonzero(values > border)
    equal = np.flatnonzero(values == border)[: count - above.size]
    kept: npt.NDArray[np.intp] = ids[np.sort(np.concatenate([above, equal]))]
    return kept


def _nucleus(weights: Logits, top_p: float) -> npt.NDArray[np.intp]:
    """Ids of the fewest tokens that together hold `top_p` of the weight, at least one; likeliest first."""
    wanted = top_p * float(weights.sum(dtype=np.float64))
    count = min(_NUCLEUS, weights.size)
    while True:
        ids = _largest(weights, count) if count < weights.size else np.arange(weights.size)
        ids = ids[np.argsort(-weights[ids], kind="stable")]
        cumulative = np.cumsum(weights[ids], dtype=np.float64)
        if cumulative[-1] >= wanted or count == weights.size:
            return ids[: int(np.searchsorted(cumulative, wanted, side="left")) + 1]
        count = min(count * 8, weights.size)
