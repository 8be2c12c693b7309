"""Guessing tokens ahead, so that one step of the model can verify several of them (see verify.py).

Two ways behind one protocol: what the sequence itself said before (`PromptLookup`: quotes, code, lists, names), and a
smaller model (`DraftModel`); `LookupOrModel` has both. Guesses never change an answer, only how fast it comes; so both
stop guessing where it does not pay. They know no sampling and no grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from edgekit.generation.chance import Chance
from edgekit.generation.draft_model import MOST, DraftModel, DraftRunner
from edgekit.generation.memory_budget import draft_bytes, tokens_beside_draft
from edgekit.generation.ngrams import Match, NgramIndex
from edgekit.generation.step_cost import best_length
from edgekit.runners.base import Limits, Runner

__all__ = ["Drafter", "Drafters", "LookupOrModel", "PromptLookup"]

# Chance that a guess is right after so many matching tokens, before anything is known: 1, 2-3, 4-7, 8-15, 16 and more.
_PRIORS = (0.3, 0.5, 0.65, 0.8, 0.9)


class Drafter(Protocol):
    """Guesses how one sequence goes on."""

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return a guess of the next tokens; empty if none is worth a try.

        Args:
            tokens: The sequence, prompt and answer; between calls it only grows.
            most: How many at most.
        """

    def learn(self, drafted: int, accepted: int) -> None:
        """Hear how many of the drafted tokens that were verified came true."""

    def release(self) -> None:
        """Free what is held for the sequence: it has ended, or lost its slot. It may go on later all the same."""


class PromptLookup:
    """Guesses that the sequence goes on as it did after the same tokens before (Saxena 2023, "Prompt Lookup Decoding").

    How likely a guess is to be right is learnt for this sequence, by the number of tokens that match; a guess that
    came true makes the match longer, so that drafts grow while they are accepted. Each guess is compared with what
    came, whether it was verified or not: so it notices without any cost when guessing begins to pay again.

    Args:
        cost: What a step that verifies so many drafted tokens takes, in any unit: `StepCost.verifying`.
        most: How many tokens to draft at most.
        min_ngram: How many tokens must match.
        max_ngram: How many are compared.

    Attributes:
        speedup: How many times as fast tokens are expected to come with the last guess; 1 if there was none.
    """

    def __init__(
        self, cost: Callable[[int], float], *, most: int = 16, min_ngram: int = 2, max_ngram: int = 16
    ) -> None:
        self._cost = cost
        self._most = most
        self._ngrams = (min_ngram, max_ngram)
        self._chances = [Chance(prior) for prior in _PRIORS]
        self._index = NgramIndex(shortest=min_ngram, longest=max_ngram)
        self._guess: Match | None = None
        self.speedup = 1.0

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return how the sequence went on before; empty where it is new, or guessing does not pay."""
        known = len(self._index.tokens)
        if len(tokens) < known or (known and tokens[known - 1] != self._index.tokens[-1]):
            # Another sequence after all.
            self._index = NgramIndex(shortest=self._ngrams[0], longest=self._ngrams[1])
            self._guess, known = None, 0
        self._index.extend(tokens[known:])
        self._compare(known)
        self._guess = match = self._index.find()
        self.speedup = 1.0
        if match is None:
            return []
        chances = (self._chance(match.length + step).value for step in range(min(most, self._most)))
        length, self.speedup = best_length(chances, self._cost)
        return self._index.continuation(match.position, length)

    def learn(self, drafted: int, accepted: int) -> None:
        """Do nothing: the sequence itself tells, at the next draft."""

    def release(self) -> None:
        """Do nothing: it holds no more than the tokens."""

    def _compare(self, start: int) -> None:
        """Learn from what came at `start`, where the last guess was made."""
        if self._guess is None:
            return
        tokens, guess = self._index.tokens, self._guess
        # One more than can have been drafted: the token after a draft that was right.
        for step in range(min(len(tokens) - start, self._most + 1)):
            right = tokens[guess.position + step] == tokens[start + step]
            self._chance(guess.length + step).learn(1, int(right))
            if not right:
                break

    def _chance(self, length: int) -> Chance:
        return self._chances[min(length.bit_length(), len(self._chances)) - 1]


class LookupOrModel:
    """Asks, before each step, whichever of the two promises tokens faster by what it has been right so far.

    A long match costs nothing and is nearly always right, so it goes before the model; a short one seldom is. While
    the model has nothing to say (it pauses, or has yet to read what came) even a short match is taken.

    Args:
        lookup: Asked first; it also learns from what it is not asked for.
        model: Asked where it promises more.
    """

    def __init__(self, lookup: PromptLookup, model: DraftModel) -> None:
        self._lookup = lookup
        self._model = model
        self._asked: Drafter = lookup

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return the guess of the one that promises more."""
        self._asked = self._lookup
        found = self._lookup.draft(tokens, most)
        if found and self._lookup.speedup >= self._model.speedup(len(tokens), most):
            return found
        said = self._model.draft(tokens, most)
        if not said:
            return found
        self._asked = self._model
        return said

    def learn(self, drafted: int, accepted: int) -> None:
        """Tell the one that was asked last."""
        self._asked.learn(drafted, accepted)

    def release(self) -> None:
        """Let both free what they hold."""
        self._lookup.release()
        self._model.release()


class Drafters:
    """Makes a drafter for each answer of an engine, and knows what memory they take together.

    Args:
        draft: The draft model's runner; None where there is none, and prompts are looked up only.
        limits: Of the larger model's runner.
        cost: As for `PromptLookup`, in seconds.
        most: How many tokens the draft model guesses at most.
    """

    def __init__(self, draft: Runner | None, limits: Limits, cost: Callable[[int], float], *, most: int = MOST) -> None:
        self._limits = limits
        self._cost = cost
        self._most = most
        self._shared = None if draft is None else DraftRunner(draft, vocab_size=limits.vocab_size, most=most)

    @property
    def kv_bytes(self) -> int:
        """The draft model's KV cache; may be read from any thread."""
        return 0 if self._shared is None else self._shared.kv_bytes

    def make(self) -> Drafter:
        """Return a drafter for one answer; it holds nothing before it is asked."""
        lookup = PromptLookup(self._cost)
        return lookup if self._shared is None else LookupOrModel(lookup, DraftModel(self._shared, cost=self._cost))

    def leave(self, budget_bytes: int | None) -> int | None:
        """Return what of a budget of KV cache is the larger model's; None is no limit."""
        if self._shared is None or budget_bytes is None:
            return budget_bytes
        tokens = tokens_beside_draft(budget_bytes, self._limits, self._shared.limits, self._most)
        return tokens * self._limits.kv_bytes_per_token

    def most_bytes(self, tokens: int) -> int:
        """Most KV cache of the draft model while the larger one's slots hold so many tokens."""
        return 0 if self._shared is None else draft_bytes(tokens, self._shared.limits, self._most)

    def begin_step(self) -> None:
        """The larger model is about to take a step."""
        if self._shared is not None:
            self._shared.begin_step()

    def reset(self) -> None:
        """Free what all of them hold; those that were made are not used again."""
        if self._shared is not None:
            self._shared.reset()
