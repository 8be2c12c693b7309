"""Shortens a chat that is too long by dropping its oldest turns.

A turn is a user message and everything up to the next one. Only complete turns are dropped, so that calls stay with
their results and roles keep alternating as templates require. System messages and the last turn are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.generation.chat.prompt import Prompt
from edgekit.generation.types import Message

__all__ = ["leave_out", "turns"]


def turns(messages: Sequence[Message]) -> list[list[int]]:
    """Return, for each turn that may be dropped, the indices of its messages; oldest first."""
    found: list[list[int]] = [[]]
    for index, message in enumerate(messages):
        if message.role == "system":
            continue
        if message.role == "user" and found[-1]:
            found.append([])
        found[-1].append(index)
    return found[:-1]


def leave_out(messages: Sequence[Message], encode: Callable[[Sequence[Message]], Prompt], max_tokens: int) -> Prompt:
    """Return the prompt of the chat with the fewest turns dropped that make it fit.

    Args:
        messages: A chat whose prompt is too long.
        encode: Encodes a chat as a prompt.
        max_tokens: Maximum length of the prompt. The result exceeds it if the last turn alone does.
    """
    removable = turns(messages)

    def without(count: int) -> Prompt:
        dropped = {index for turn in removable[:count] for index in turn}
        prompt = encode([message for index, message in enumerate(messages) if index not in dropped])
        return Prompt(prompt.tokens, len(dropped), prompt.thinking)

    low, high = 1, len(removable)
    best = without(high)
    # From the newest turn backwards in growing steps, then by bisection: no chat that is tried is much longer than the
    # result, however long the whole one is.
    step = 1
    while low < high and len(best.tokens) <= max_tokens:
        # `high` fits.
        middle = max(high - step, (low + high) // 2)
        prompt = without(middle)
        if len(prompt.tokens) <= max_tokens:
            high, best = middle, prompt
            step *= 2
        else:
            low = middle + 1
    return best
