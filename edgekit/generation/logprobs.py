"""How likely tokens were to the model itself: log-softmax of the raw logits.

Raw: before temperature, penalties, bias and grammar, as the OpenAI API reports them. It knows nothing of what was
chosen.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgekit.generation.filters import largest, total

__all__ = ["likeliest", "log_normalizer"]

Logits = npt.NDArray[np.float32]


def log_normalizer(logits: Logits, best: np.float32) -> float:
    """The logarithm of Σ exp(logits): what to subtract from a logit to have its logprob.

    The exponentials are float32, each right to 3 units in the last place; they are summed in pairs, and what follows
    is float64. So a logprob is wrong by at most about 1e-6, of which log-softmax in float64 would save nothing that
    the logits themselves know.

    Args:
        logits: float32 `[vocab]`.
        best: The largest of them; finite.
    """
    with np.errstate(under="ignore", over="ignore"):
        weights = logits - best
        np.exp(weights, out=weights)
    return float(best) + math.log(total(weights))


def likeliest(logits: Logits, count: int) -> list[int]:
    """The `count` likeliest tokens, best first; of equal ones the first."""
    found = largest(logits, count)
    return [int(token) for token in found[np.argsort(-logits[found], kind="stable")]]
