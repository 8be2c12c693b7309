"""Reference sampling in plain loops and double precision, as the papers and APIs define it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgekit.generation.types import Sampling

__all__ = ["chi_square_limit", "distribution", "pack", "penalized"]


def penalized(
    logits: Sequence[float], sampling: Sampling, prompt: Sequence[int] = (), answer: Sequence[int] = ()
) -> list[float]:
    """Bias, then the repetition penalty over the last tokens of both, then OpenAI's penalties over the answer."""
    result = [float(value) for value in logits]
    for token, bias in sampling.logit_bias.items():
        result[token] += bias
    both = [*prompt, *answer]
    recent = both if sampling.repeat_last_n < 0 else both[max(0, len(both) - sampling.repeat_last_n) :]
    for token in set(recent):
        if result[token] > 0:
            result[token] /= sampling.repetition_penalty
        else:
            result[token] *= sampling.repetition_penalty
    for token in set(answer):
        count = answer.count(token)
        result[token] -= count * sampling.frequency_penalty + (count > 0) * sampling.presence_penalty
    return result


def distribution(logits: Sequence[float], sampling: Sampling, allowed: set[int] | None = None) -> list[float]:
    """The probability of each token."""
    kept = [token for token in range(len(logits)) if allowed is None or token in allowed]
    kept.sort(key=lambda token: -logits[token])
    if sampling.top_k:
        kept = kept[: sampling.top_k]
    probs = _softmax({token: logits[token] / sampling.temperature for token in kept})
    if sampling.typical_p < 1:
        entropy = -sum(p * math.log(p) for p in probs.values() if p)
        order = sorted(kept, key=lambda token: abs(-math.log(probs[token]) - entropy) if probs[token] else math.inf)
        kept = _until(order, probs, sampling.typical_p)
    if sampling.top_p < 1:
        rest = _normalized(kept, probs)
        kept = _until(sorted(kept, key=lambda token: -rest[token]), rest, sampling.top_p)
    if sampling.min_p > 0:
        peak = max(probs[token] for token in kept)
        kept = [token for token in kept if probs[token] >= sampling.min_p * peak]
    rest = _normalized(kept, probs)
    return [rest.get(token, 0.0) for token in range(len(logits))]


def _softmax(scores: dict[int, float]) -> dict[int, float]:
    best = max(scores.values())
    weights = {token: math.exp(score - best) for token, score in scores.items()}
    total = math.fsum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def _until(order: Sequence[int], probs: dict[int, float], target: float) -> list[int]:
    total = 0.0
    for count, token in enumerate(order, 1):
        total += probs[token]
        if total >= target:
            return list(order[:count])
    return list(order)


def _normalized(kept: Sequence[int], probs: dict[int, float]) -> dict[int, float]:
    total = math.fsum(probs[token] for token in kept)
    return {token: probs[token] / total for token in kept}


def pack(allowed: set[int], vocab: int) -> npt.NDArray[np.int32]:
    """A mask in the packed layout: bit i % 32 of word i // 32."""
    words = [0] * ((vocab + 31) // 32)
    for token in allowed:
        words[token // 32] |= 1 << token % 32
    return np.array(words, np.uint32).view(np.int32)


def chi_square_limit(degrees: int) -> float:
    """The value that chi-square exceeds once in a million times (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 4.7534 * math.sqrt(spread)) ** 3
