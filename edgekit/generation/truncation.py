"""Which messages a chat that is too long can do without: its oldest turns, whole.

A turn is a user's message and all that follows it until the next user's: calls and their results stay together, and
roles go on alternating as templates want them to. System messages stay, and so does the last turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.generation.prompt import Prompt
from edgekit.generation.request import Message

__all__ = ["leave_out", "turns"]


def turns(messages: Sequence[Message]) -> list[list[int]]:
    """Return the numbers of the messages of each turn that may be left out, oldest first."""
    found: list[list[int]] = [[]]
    for number, message in enumerate(messages):
        if message.role == "system":
            continue
        if message.role == "user" and found[-1]:
            found.append([])
        found[-1].append(number)
    return found[:-1]


def leave_out(messages: Sequence[Message], encode: Callable[[Sequence[Message]], Prompt], most: int) -> Prompt:
    """Return the prompt of the chat with as few turns left out as make it fit.

    Args:
        messages: A chat whose prompt is too long.
        encode: Makes the prompt of a chat.
        most: Tokens that it may have. If even the last turn alone has more, the prompt has.
    """
    removable = turns(messages)

    def without(count: int) -> Prompt:
        gone = {number for turn in removable[:count] for number in turn}
        prompt = encode([message for number, message in enumerate(messages) if number not in gone])
        return Prompt(prompt.tokens, len(gone), prompt.thinking)

    low, high = 1, len(removable)
    best = without(high)
    while low < high and len(best.tokens) <= most:
        # `high` fits.
        middle = (low + high) // 2
        prompt = without(middle)
        if len(prompt.tokens) <= most:
            high, best = middle, prompt
        else:
            low = middle + 1
    return best
