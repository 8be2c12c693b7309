"""Verifies draft tokens so that the output has the same distribution as without them.

Speculative sampling (Leviathan et al. 2023) accepts a draft token x, drawn from q, with probability
min(1, p(x) / q(x)), and otherwise draws from max(0, p - q). Drafts here are deterministic, q(x) = 1: x is accepted with
p(x), and otherwise a token is drawn from p without x. Drawing from p and comparing with x is equivalent: the draw is x
with p(x), and given that it is not, it is y with p(y) / (1 - p(x)).

So each token is one draw from the model's own distribution, as without drafts, and seeded output is the same token by
token if the logits are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgekit.generation.sampling.sampler import SampledToken, Sampler

__all__ = ["Matcher", "accept_drafts"]


class Matcher(Protocol):
    """The part of a grammar matcher that verification needs."""

    @property
    def complete(self) -> bool:
        """Whether only the end can follow; it need not be sampled."""

    def mask(self) -> npt.NDArray[np.int32] | None:
        """Bit mask of the tokens that may come next; None allows all."""

    def accept(self, token: int) -> None:
        """Advance by one token."""

    def forced(self) -> Sequence[int]:
        """The tokens that must come next."""


def accept_drafts(
    sampler: Sampler,
    logits: npt.NDArray[np.float32],
    drafted: Sequence[int],
    *,
    matcher: Matcher | None = None,
    end_tokens: Collection[int] = (),
    fast_forward: bool = False,
) -> list[SampledToken]:
    """Sample a token at each position, up to the first that differs from its draft token.

    Args:
        sampler: Counts the tokens for the penalties.
        logits: float32 `[1 + drafts, vocab]`: after the last token of the sequence, and after each draft token.
        drafted: Draft tokens; may be empty.
        matcher: The grammar's state; it is advanced by each token except an end token.
        end_tokens: Tokens that end the sequence.
        fast_forward: Tokens that the grammar forces are appended, not drawn.

    Returns:
        At least one token; if all draft tokens are accepted, one more than those. The accepted ones equal their draft
        token, up to the first that does not. Only forced tokens follow that one; the grammar is advanced by them too.

    Raises:
        RunnerError: The logits contain NaN or infinity.
        EdgekitError: The grammar allows no token.
    """
    if logits.shape[0] != len(drafted) + 1:
        raise ValueError(f"{len(drafted)} drafts need {len(drafted) + 1} rows of logits, not {logits.shape[0]}")
    sampled: list[SampledToken] = []
    while True:
        one = sampler.sample(logits[len(sampled)], matcher.mask() if matcher else None)
        sampled.append(one)
        if one.token in end_tokens:
            return sampled
        if matcher:
            matcher.accept(one.token)
            if fast_forward:
                sampled += _forced(sampler, matcher)
        if [one.token for one in sampled] != list(drafted[: len(sampled)]) or (matcher and matcher.complete):
            return sampled


def _forced(sampler: Sampler, matcher: Matcher) -> list[SampledToken]:
    """Advance by the tokens that the grammar forces, without drawing and regardless of the logits."""
    tokens = matcher.forced()
    for token in tokens:
        matcher.accept(token)
        sampler.accept(token)
    return [SampledToken(token, None, ()) for token in tokens]
