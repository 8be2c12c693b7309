"""Generates a few random answers under a compiled grammar, to find out before the first token what would fail later.

llguidance compiles grammars that it cannot follow: its limits on each step are met only during decoding.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

__all__ = ["try_out"]

# The share of steps in which an answer closes what is open, and its number of steps.
ANSWERS = ((0.05, 40), (0.3, 60), (0.7, 60))
MAX_FORCED = 32

Bits = npt.NDArray[np.bool_]


def try_out(prototype: LLMatcher, allowed: Bits, closing: Bits) -> str:
    """Return llguidance's error where an answer cannot be generated, else an empty string.

    Args:
        prototype: A matcher at the start of the grammar; only copies of it advance.
        allowed: bool `[vocab_size]`: tokens that an answer may have, without those that end it.
        closing: bool `[vocab_size]`: those that close something, such as quotes and brackets.
    """
    for seed, (share, steps) in enumerate(ANSWERS):
        rng = random.Random(seed)  # noqa: S311  repeatable, not secret
        matcher = prototype.deep_copy()
        for _ in range(steps):
            if not _step(matcher, allowed, closing, rng, share):
                break
        if matcher.is_error():
            return str(matcher.get_error())
    return ""


def _step(matcher: LLMatcher, allowed: Bits, closing: Bits, rng: random.Random, share: float) -> bool:
    """Advance by one token, or by the forced ones; False at the end of the answer."""
    if forced := list(matcher.compute_ff_tokens())[:MAX_FORCED]:
        return bool(matcher.consume_tokens(forced))
    closes = rng.random() < share
    if matcher.is_stopped() or (closes and matcher.is_accepting()):
        return False
    words = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    if matcher.is_error():
        return False
    following = np.unpackbits(words, bitorder="little")[: len(allowed)].astype(np.bool_) & allowed
    choices = np.flatnonzero(following & closing) if closes else np.empty(0, np.intp)
    if not choices.size:
        choices = np.flatnonzero(following)
    return bool(choices.size) and bool(matcher.consume_token(int(rng.choice(choices))))
