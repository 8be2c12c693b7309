"""Drafters propose draft tokens, several of which one step of the model verifies (see verify.py).

There are two: `PromptLookup` drafts from earlier text of the same sequence (quotes, code, lists, names), `DraftModel`
with a smaller model; `LookupOrModel` combines them. Drafts never change the output, only its speed, so both stop
drafting where it does not pay off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from edgekit.generation.memory_budget import draft_kv_bytes, max_tokens_with_draft
from edgekit.generation.speculative.acceptance import AcceptanceRate
from edgekit.generation.speculative.draft_model import DRAFT_MAX, DraftModel, DraftRunner
from edgekit.generation.speculative.ngrams import Match, NgramIndex
from edgekit.generation.speculative.step_cost import best_draft_length
from edgekit.runners.base import Limits, Runner

__all__ = ["Drafter", "Drafters", "LookupOrModel", "PromptLookup"]

# Acceptance rate by number of matching tokens, before anything was observed: 1, 2-3, 4-7, 8-15, 16 and more.
_PRIORS = (0.3, 0.5, 0.65, 0.8, 0.9)


class Drafter(Protocol):
    """Proposes draft tokens for one sequence."""

    def draft(self, tokens: Sequence[int], limit: int) -> list[int]:
        """Return draft tokens; empty if drafting does not pay off.

        Args:
            tokens: The sequence, prompt and completion; between calls it only grows.
            limit: Maximum number of draft tokens.
        """

    def learn(self, drafted: int, accepted: int) -> None:
        """Record how many of the verified draft tokens were accepted."""

    def release(self) -> None:
        """Free the sequence's resources: it has ended or was preempted. It may still go on later."""


class PromptLookup:
    """Drafts what followed an earlier occurrence of the last tokens (Saxena 2023, "Prompt Lookup Decoding").

    The acceptance rate is learned per sequence, by the length of the match; accepted draft tokens lengthen the match,
    so drafts grow while they are accepted. Every match is compared with what follows, whether its tokens were verified
    or not, so it finds out at no cost when drafting pays off again.

    Args:
        cost: Cost of a step that verifies so many draft tokens, in any unit: `StepCost.verify_cost`.
        draft_max: Maximum draft tokens per step.
        min_ngram: Minimum number of matching tokens.
        max_ngram: Maximum number of tokens compared.

    Attributes:
        speedup: Expected speedup of the last draft; 1 if there was none.
    """

    def __init__(
        self, cost: Callable[[int], float], *, draft_max: int = 16, min_ngram: int = 2, max_ngram: int = 16
    ) -> None:
        self._cost = cost
        self._draft_max = draft_max
        self._ngrams = (min_ngram, max_ngram)
        self._rates = [AcceptanceRate(prior) for prior in _PRIORS]
        self._index = NgramIndex(min_ngram=min_ngram, max_ngram=max_ngram)
        self._match: Match | None = None
        self.speedup = 1.0

    def draft(self, tokens: Sequence[int], limit: int) -> list[int]:
        """Return what followed the best match; empty if there is none, or drafting does not pay off."""
        known = len(self._index.tokens)
        if len(tokens) < known or (known and tokens[known - 1] != self._index.tokens[-1]):
            # Another sequence after all.
            self._index = NgramIndex(min_ngram=self._ngrams[0], max_ngram=self._ngrams[1])
            self._match, known = None, 0
        self._index.extend(tokens[known:])
        self._compare(known)
        self._match = match = self._index.find()
        self.speedup = 1.0
        if match is None:
            return []
        rates = (self._rate(match.length + step).value for step in range(min(limit, self._draft_max)))
        length, self.speedup = best_draft_length(rates, self._cost)
        return self._index.continuation(match.position, length)

    def learn(self, drafted: int, accepted: int) -> None:
        """Do nothing: the next `draft` learns from the sequence itself."""

    def release(self) -> None:
        """Do nothing: it holds only the tokens."""

    def _compare(self, start: int) -> None:
        """Compare the last match's continuation with the tokens from `start` on."""
        if self._match is None:
            return
        tokens, match = self._index.tokens, self._match
        # One more than can have been drafted: the token after a fully accepted draft.
        for step in range(min(len(tokens) - start, self._draft_max + 1)):
            equal = tokens[match.position + step] == tokens[start + step]
            self._rate(match.length + step).learn(1, int(equal))
            if not equal:
                break

    def _rate(self, length: int) -> AcceptanceRate:
        return self._rates[min(length.bit_length(), len(self._rates)) - 1]


class LookupOrModel:
    """Drafts, in each step, with whichever of the two has the higher expected speedup.

    A long match costs nothing and is nearly always accepted, so it beats the model; a short one seldom does. While the
    model drafts nothing (it pauses, or is still prefilling), a short match is used too.

    Args:
        lookup: Tried first; it also learns from drafts that are not used.
        model: Tried if it promises more.
    """

    def __init__(self, lookup: PromptLookup, model: DraftModel) -> None:
        self._lookup = lookup
        self._model = model
        self._last: Drafter = lookup

    def draft(self, tokens: Sequence[int], limit: int) -> list[int]:
        """Return the draft with the higher expected speedup."""
        self._last = self._lookup
        found = self._lookup.draft(tokens, limit)
        if found and self._lookup.speedup >= self._model.speedup(len(tokens), limit):
            return found
        drafted = self._model.draft(tokens, limit)
        if not drafted:
            return found
        self._last = self._model
        return drafted

    def learn(self, drafted: int, accepted: int) -> None:
        """Pass it to the drafter of the last draft."""
        self._last.learn(drafted, accepted)

    def release(self) -> None:
        """Release both."""
        self._lookup.release()
        self._model.release()


class Drafters:
    """Creates the drafters of an engine's sequences, and accounts for their memory.

    Args:
        draft: The draft model's runner; None for prompt lookup only.
        limits: Limits of the main model's runner.
        cost: As for `PromptLookup`, in seconds.
        draft_max: Maximum draft tokens per step from the draft model.
    """

    def __init__(
        self, draft: Runner | None, limits: Limits, cost: Callable[[int], float], *, draft_max: int = DRAFT_MAX
    ) -> None:
        self._limits = limits
        self._cost = cost
        self._draft_max = draft_max
        self._runner = None if draft is None else DraftRunner(draft, vocab_size=limits.vocab_size, draft_max=draft_max)

    @property
    def kv_bytes(self) -> int:
        """The draft model's KV cache; may be read from any thread."""
        return 0 if self._runner is None else self._runner.kv_bytes

    def new(self) -> Drafter:
        """Return a drafter for one sequence; it holds no resources before its first draft."""
        lookup = PromptLookup(self._cost)
        return lookup if self._runner is None else LookupOrModel(lookup, DraftModel(self._runner, cost=self._cost))

    def main_budget(self, budget_bytes: int | None) -> int | None:
        """Return the main model's part of a KV budget; None is no limit."""
        if self._runner is None or budget_bytes is None:
            return budget_bytes
        tokens = max_tokens_with_draft(budget_bytes, self._limits, self._runner.limits, self._draft_max)
        return tokens * self._limits.kv_bytes_per_token

    def max_kv_bytes(self, tokens: int) -> int:
        """Return the draft model's maximum KV cache while the main model's slots hold so many tokens."""
        return 0 if self._runner is None else draft_kv_bytes(tokens, self._runner.limits, self._draft_max)

    def begin_step(self) -> None:
        """Announce a step of the main model."""
        if self._runner is not None:
            self._runner.begin_step()

    def reset(self) -> None:
        """Free all draft slots; existing drafters must not be used again."""
        if self._runner is not None:
            self._runner.reset()
