"""What a step costs by its number of tokens, measured while it runs, and how many guesses that is worth.

A step over a few tokens reads the weights once, as a step over one does, so that it costs little more; how little
depends on the device, the model and its kernels. It knows no tokens, only how many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise

__all__ = ["StepCost", "best_length"]

# What a further token is taken to cost beside the first, until it was measured.
_GUESS = 0.05
_KEPT = 5
# A count that was not seen in so many steps is measured anew: one that was slow once would never be tried again.
_FORGET = 512
# Drafting must win at least this much; less is lost in noise.
_WORTH = 1.03


class StepCost:
    """Seconds of a step by its tokens; shared by all sequences of one runner, used by one thread.

    For each number of tokens the median of the last few steps counts, made monotone (more tokens never cost less) and
    interpolated. Before the first step it only knows ratios, and the unit is one step.

    Args:
        most: Steps of more tokens are prefill and not looked at.
    """

    def __init__(self, *, most: int = 64) -> None:
        self._most = most
        self._seen: dict[int, deque[float]] = {}
        self._last: dict[int, int] = {}
        self._steps = 0
        self._curve: list[tuple[int, float]] | None = []

    def observe(self, tokens: int, seconds: float) -> None:
        """Take a step's tokens and duration."""
        if not 1 <= tokens <= self._most or not seconds > 0:
            return
        self._steps += 1
        self._seen.setdefault(tokens, deque(maxlen=_KEPT)).append(seconds)
        self._last[tokens] = self._steps
        for old in [count for count, step in self._last.items() if self._steps - step > _FORGET]:
            del self._seen[old], self._last[old]
        self._curve = None

    def __call__(self, tokens: int) -> float:
        """Seconds that a step of so many tokens is expected to take."""
        if self._curve is None:
            self._curve = _monotone([(count, _median(self._seen[count])) for count in sorted(self._seen)])
        curve = self._curve
        if not curve:
            return _guess(tokens)
        for (low, fast), (high, slow) in pairwise(curve):
            if low <= tokens <= high:
                return fast + (slow - fast) * (tokens - low) / (high - low)
        near, known = curve[0] if tokens < curve[0][0] else curve[-1]
        return known * _guess(tokens) / _guess(near)

    def verifying(self, drafted: int) -> float:
        """Seconds of a step that verifies so many drafted tokens: it runs the last chosen one too."""
        return self(drafted + 1)


def best_length(chances: Iterable[float], cost: Callable[[int], float]) -> int:
    """How many tokens to draft so that tokens come fastest; 0 if drafting does not pay.

    A step that verifies k drafts yields 1 + a1 + a1·a2 + … tokens, k products of chances (Leviathan et al. 2023 with a
    chance of each place's own), and takes cost(k).

    Args:
        chances: That a draft is accepted, the ones before it being accepted.
        cost: Of a step that verifies so many drafts, in any unit.
    """
    best, plain = 0, cost(0)
    fastest = _WORTH
    expected = held = 1.0
    for length, chance in enumerate(chances, 1):
        held *= chance
        expected += held
        rate = expected * plain / cost(length)
        if rate > fastest:
            best, fastest = length, rate
    return best


def _guess(tokens: int) -> float:
    return 1 + _GUESS * (tokens - 1)


def _median(values: Iterable[float]) -> float:
    """The lower one of two in the middle: hiccups are always upwards."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def _monotone(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The nearest values that never fall (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for _, value in points:
        mean, size = value, 1
        while pools and pools[-1][0] > mean:
            other, others = pools.pop()
            mean, size = (mean * size + other * others) / (size + others), size + others
        pools.append((mean, size))
    levels = [mean for mean, size in pools for _ in range(size)]
    return [(count, level) for (count, _), level in zip(points, levels, strict=True)]
