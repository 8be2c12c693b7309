"""What a step costs by its number of tokens, measured while it runs, and how many guesses that is worth.

A step over a few tokens reads the weights once, as a step over one does, so that it costs little more; how little
depends on the device, the model and its kernels. It knows no tokens, only how many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise

__all__ = ["StepCost", "StepTimes", "best_length"]

# What a further token is taken to cost beside the first, until it was measured.
_GUESS = 0.05
_KEPT = 5
# A count that was not seen in so many steps is measured anew: one that was slow once would never be tried again.
_FORGET = 512
# Drafting must win at least this much; less is lost in noise.
_WORTH = 1.03
# While answers run, a piece of a prompt may take this much longer than a step without it, but always so long.
_PREFILL_SHARE = 2.0
_PREFILL_S = 0.05
_LEAST_PIECE = 16


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


class StepTimes:
    """What the steps of an engine take, learnt from each and asked before the next; used by one thread."""

    def __init__(self) -> None:
        # Of a step of one answer alone, by its tokens.
        self._alone = StepCost()
        self._decode_s = 0.0
        self._prefill_tokens_per_s = 0.0

    def verifying(self, drafted: int, answers: int = 1) -> float:
        """Seconds that each of the running answers pays for a step in which one verifies so many drafted tokens.

        What is spent on one answer's guesses keeps the others waiting too; so with several it is set against an
        answer's share of the step, and not against what the step would take alone.
        """
        alone = self._alone.verifying(drafted)
        if answers < 2 or not self._decode_s:
            return alone
        return alone / self._alone(1) * self._decode_s / answers

    def piece(self, most: int) -> int:
        """How many of a prompt's tokens may go along in a step without holding answers up."""
        seconds = max(_PREFILL_SHARE * self._decode_s, _PREFILL_S)
        return max(_LEAST_PIECE, min(most, int(seconds * self._prefill_tokens_per_s)))

    def alone(self, tokens: int, seconds: float) -> None:
        """One answer took a step by itself, with so many tokens."""
        self._alone.observe(tokens, seconds)

    def decoded(self, seconds: float) -> None:
        """A step gave each running answer one token, and did nothing else."""
        self._decode_s += 0.2 * (seconds - self._decode_s) if self._decode_s else seconds

    def prefilled(self, tokens: int, seconds: float) -> bool:
        """A step took so many known tokens of one prompt; returns whether they were enough to tell its speed."""
        if tokens < _LEAST_PIECE:
            return False
        rate, known = tokens / seconds, self._prefill_tokens_per_s
        self._prefill_tokens_per_s += 0.3 * (rate - known) if known else rate
        return True


def best_length(chances: Iterable[float], cost: Callable[[int], float]) -> tuple[int, float]:
    """How many tokens to draft so that tokens come fastest, and how many times as fast; (0, 1.0) if it does not pay.

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
    return best, fastest if best else 1.0


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
