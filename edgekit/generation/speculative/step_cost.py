"""Measures what a step costs by its number of tokens, and computes how many draft tokens are worth verifying.

A step over a few tokens reads the weights once, as a step over one token does, so it costs little more; how little
depends on the device, the model and its kernels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise

__all__ = ["StepCost", "StepTimes", "best_draft_length"]

# Cost of one more token, relative to the first, before it was measured.
_PRIOR_TOKEN_COST = 0.05
# Measurements kept per token count.
_WINDOW = 5
# A token count not seen for this many steps is forgotten: one that was slow once would never be tried again.
_MAX_AGE_STEPS = 512
# Minimum gain from drafting; a smaller one is within the noise.
_MIN_SPEEDUP = 1.03
# While sequences decode, a step with a prefill chunk may take this many times a step without one, or this long.
_PREFILL_SLOWDOWN = 2.0
_MIN_PREFILL_S = 0.05
_MIN_PREFILL_CHUNK = 16


class StepCost:
    """Seconds of a step as a function of its tokens; shared by all sequences of one runner, used by one thread.

    For each number of tokens the median of the last few steps counts, made monotone (more tokens never cost less) and
    interpolated. Before the first measurement only ratios are known, and the unit is one step.

    Args:
        max_tokens: Steps of more tokens are prefill and ignored.
    """

    def __init__(self, *, max_tokens: int = 64) -> None:
        self._max_tokens = max_tokens
        self._measured: dict[int, deque[float]] = {}
        self._last_step: dict[int, int] = {}
        self._steps = 0
        self._curve: list[tuple[int, float]] | None = []

    def observe(self, tokens: int, seconds: float) -> None:
        """Record a step's tokens and duration."""
        if not 1 <= tokens <= self._max_tokens or not seconds > 0:
            return
        self._steps += 1
        self._measured.setdefault(tokens, deque(maxlen=_WINDOW)).append(seconds)
        self._last_step[tokens] = self._steps
        for old in [count for count, step in self._last_step.items() if self._steps - step > _MAX_AGE_STEPS]:
            del self._measured[old], self._last_step[old]
        self._curve = None

    def __call__(self, tokens: int) -> float:
        """Return the expected seconds of a step of so many tokens."""
        if self._curve is None:
            self._curve = _monotone([(count, _median(self._measured[count])) for count in sorted(self._measured)])
        curve = self._curve
        if not curve:
            return _prior_cost(tokens)
        for (low, fast), (high, slow) in pairwise(curve):
            if low <= tokens <= high:
                return fast + (slow - fast) * (tokens - low) / (high - low)
        nearest, known = curve[0] if tokens < curve[0][0] else curve[-1]
        return known * _prior_cost(tokens) / _prior_cost(nearest)

    def verify_cost(self, drafted: int) -> float:
        """Return the seconds of a step that verifies so many draft tokens: it runs the last sampled token too."""
        return self(drafted + 1)


class StepTimes:
    """Step times of one engine: updated after each step, read before the next; used by one thread."""

    def __init__(self) -> None:
        # Steps of a single sequence, by tokens.
        self._single = StepCost()
        self._decode_s = 0.0
        self._prefill_tokens_per_s = 0.0

    def verify_cost(self, drafted: int, running: int = 1) -> float:
        """Return the seconds that a step costs each running sequence if one of them verifies so many draft tokens.

        One sequence's draft tokens delay the others too; so with several sequences the time is set in relation to one
        sequence's share of a step, and not to a step of that sequence alone.
        """
        single = self._single.verify_cost(drafted)
        if running < 2 or not self._decode_s:
            return single
        return single / self._single(1) * self._decode_s / running

    def prefill_chunk_size(self, limit: int) -> int:
        """Return how many prompt tokens can join a step without delaying the decoding sequences too much."""
        seconds = max(_PREFILL_SLOWDOWN * self._decode_s, _MIN_PREFILL_S)
        return max(_MIN_PREFILL_CHUNK, min(limit, int(seconds * self._prefill_tokens_per_s)))

    def observe_single(self, tokens: int, seconds: float) -> None:
        """Record a step of one sequence alone that sampled a token."""
        self._single.observe(tokens, seconds)

    def observe_decode(self, seconds: float) -> None:
        """Record a step of one token per sequence."""
        self._decode_s += 0.2 * (seconds - self._decode_s) if self._decode_s else seconds

    def observe_prefill(self, tokens: int, seconds: float) -> bool:
        """Record a step of known tokens of one sequence; returns whether there were enough to measure the speed."""
        if tokens < _MIN_PREFILL_CHUNK:
            return False
        rate, known = tokens / seconds, self._prefill_tokens_per_s
        self._prefill_tokens_per_s += 0.3 * (rate - known) if known else rate
        return True


def best_draft_length(acceptance: Iterable[float], cost: Callable[[int], float]) -> tuple[int, float]:
    """Return the number of draft tokens with the highest token rate, and the speedup; (0, 1.0) if none pays off.

    A step that verifies k draft tokens yields 1 + a1 + a1·a2 + … tokens, up to the product of k acceptance rates
    (Leviathan et al. 2023, with a rate per position), and takes cost(k).

    Args:
        acceptance: The acceptance rate at each position, given that the ones before it were accepted.
        cost: Of a step that verifies so many draft tokens, in any unit.
    """
    best, plain = 0, cost(0)
    speedup = _MIN_SPEEDUP
    expected = accepted = 1.0
    for length, rate in enumerate(acceptance, 1):
        accepted *= rate
        expected += accepted
        gain = expected * plain / cost(length)
        if gain > speedup:
            best, speedup = length, gain
    return best, speedup if best else 1.0


def _prior_cost(tokens: int) -> float:
    return 1 + _PRIOR_TOKEN_COST * (tokens - 1)


def _median(values: Iterable[float]) -> float:
    """The lower of the two middle values: outliers are always slow."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def _monotone(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The nearest non-decreasing values (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for _, value in points:
        mean, size = value, 1
        while pools and pools[-1][0] > mean:
            other, others = pools.pop()
            mean, size = (mean * size + other * others) / (size + others), size + others
        pools.append((mean, size))
    levels = [mean for mean, size in pools for _ in range(size)]
    return [(count, level) for (count, _), level in zip(points, levels, strict=True)]
