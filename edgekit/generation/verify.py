"""Which of the drafted tokens stand: the answer is distributed as if there had been no drafts.

Speculative sampling (Leviathan et al. 2023) accepts a draft x, drawn from q, with probability min(1, p(x) / q(x)), and
else draws from max(0, p - q). These drafts are certain, q(x) = 1: x is accepted with p(x), and else a token is drawn
from p without x. To draw from p and to see whether it is x does the same: the draw is x with p(x), and given that it is
not, it is y with p(y) / (1 - p(x)).

So each token is one draw from the model's own distribution, as without drafts, and a seeded answer is the same with
them, token by token, if the logits are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgekit.generation.sampling import Choice, Sampler

__all__ = ["Matcher", "accept_drafts"]


class Matcher(Protocol):
    """What of a grammar's state is needed here."""

    @property
    def complete(self) -> bool:
        """Nothing but the end can follow, and needs not be chosen."""

    def mask(self) -> npt.NDArray[np.int32] | None:
        """Which tokens may come next, packed; None allows all."""

    def accept(self, token: int) -> None:
        """Take the next token."""

    def forced(self) -> Sequence[int]:
        """Tokens that must come next."""


def accept_drafts(
    sampler: Sampler,
    logits: npt.NDArray[np.float32],
    drafted: Sequence[int],
    *,
    matcher: Matcher | None = None,
    end_tokens: Collection[int] = (),
    fast_forward: bool = False,
) -> list[Choice]:
    """Choose a token at each place up to the first that is not the draft.

    Args:
        sampler: It counts what is chosen.
        logits: float32 `[1 + drafts, vocab]`: after the last token of the sequence, and after each draft.
        drafted: Guesses of the next tokens; may be empty.
        matcher: The grammar's state; it takes what is chosen, except an end token.
        end_tokens: Nothing follows one of them.
        fast_forward: What the grammar forces after a choice is taken, not drawn: without drafts it would not be.

    Returns:
        At least one. If all drafts are accepted, one more than they are. Accepted are those that equal their draft, up
        to the first that does not. Only forced tokens follow that one; the grammar has taken them too.

    Raises:
        RunnerError: The logits are not numbers.
        EdgekitError: The grammar leaves no token.
    """
    if logits.shape[0] != len(drafted) + 1:
        raise ValueError(f"{len(drafted)} drafts need {len(drafted) + 1} rows of logits, not {logits.shape[0]}")
    choices: list[Choice] = []
    while True:
        choice = sampler.choose(logits[len(choices)], matcher.mask() if matcher else None)
        choices.append(choice)
        if choice.token in end_tokens:
            return choices
        if matcher:
            matcher.accept(choice.token)
            if fast_forward:
                choices += _forced(sampler, matcher)
        if [one.token for one in choices] != list(drafted[: len(choices)]) or (matcher and matcher.complete):
            return choices


def _forced(sampler: Sampler, matcher: Matcher) -> list[Choice]:
    """Take what the grammar leaves no choice about; nothing is drawn, and no logits have a say."""
    tokens = matcher.forced()
    for token in tokens:
        matcher.accept(token)
        sampler.accept(token)
    return [Choice(token, None, ()) for token in tokens]
