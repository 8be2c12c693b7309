"""Logits to the next token, in numpy. It knows no model and no text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError
from edgekit.generation.request import Sampling

__all__ = ["Sampler"]

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]

# First guess at how many tokens hold the probability that top_p asks for; it grows until they do.
_NUCLEUS = 128


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
            raise RunnerError(
                "the model computed logits that are not numbers", hint="verify the bundle: edgekit verify"
            )
        if self._sampling.temperature == 0 or self._sampling.top_k == 1:
            return best
        ids, weights = self._candidates(logits, float(logits[best]))
        cumulative = np.cumsum(weights)
        drawn = self._random.random() * cumulative[-1]
        index = min(int(np.searchsorted(cumulative, drawn, side="right")), len(cumulative) - 1)
        return index if ids is None else int(ids[index])

    def _candidates(self, logits: Logits, best: float) -> tuple[npt.NDArray[np.intp] | None, Floats]:
        """The tokens that may be drawn (None: all) and their weights, which need not add up to 1."""
        sampling = self._sampling
        ids: npt.NDArray[np.intp] | None = None
        if 0 < sampling.top_k < logits.size:
            ids = _largest(logits, sampling.top_k)
            logits = logits[ids]
        # Beside the best token the rest may underflow to 0, which is what a small temperature asks for.
        with np.errstate(under="ignore", over="ignore"):
            weights = np.exp((logits.astype(np.float64) - best) / sampling.temperature)
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


def _largest(values: Logits | Floats, count: int) -> npt.NDArray[np.intp]:
    """Ids of the `count` largest values, ascending; of equal ones at the border the first."""
    border = np.partition(values, values.size - count)[values.size - count]
    above = np.flatnonzero(values > border)
    equal = np.flatnonzero(values == border)[: count - above.size]
    return np.sort(np.concatenate([above, equal]))


def _nucleus(weights: Floats, top_p: float) -> npt.NDArray[np.intp]:
    """Ids of the fewest tokens that together hold `top_p` of the weight, at least one; likeliest first."""
    wanted = top_p * float(weights.sum())
    count = min(_NUCLEUS, weights.size)
    while True:
        ids = _largest(weights, count) if count < weights.size else np.arange(weights.size)
        ids = ids[np.argsort(-weights[ids], kind="stable")]
        cumulative = np.cumsum(weights[ids])
        if cumulative[-1] >= wanted or count == weights.size:
            return ids[: int(np.searchsorted(cumulative, wanted, side="left")) + 1]
        count = min(count * 8, weights.size)
