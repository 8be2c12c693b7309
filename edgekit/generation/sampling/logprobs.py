"""Logprobs: log-softmax of the raw logits, before temperature, penalties, bias and grammar, as in the OpenAI API."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgekit.generation.sampling.filters import largest, total

__all__ = ["log_normalizer", "top_tokens"]

Logits = npt.NDArray[np.float32]


def log_normalizer(logits: Logits, best: np.float32) -> float:
    """Return the logarithm of Σ exp(logits); a logit minus it is the logprob.

    The exponentials are float32, each accurate to 3 ulp; they are summed pairwise, and the rest is float64. So the
    error of a logprob is at most about 1e-6, which is within the precision of the logits themselves.

    Args:
        logits: float32 `[vocab]`.
        best: Their maximum; finite.
    """
    with np.errstate(under="ignore", over="ignore"):
        weights = logits - best
        np.exp(weights, out=weights)
    return float(best) + math.log(total(weights))


def top_tokens(logits: Logits, count: int) -> list[int]:
    """Return the `count` most likely tokens, best first; ties go to the first."""
    found = largest(logits, count)
    return [int(token) for token in found[np.argsort(-logits[found], kind="stable")]]
