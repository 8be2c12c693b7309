"""Guessing tokens ahead, so that one step of the model can verify several of them (see verify.py).

Two ways behind one protocol: what the sequence itself said before (`PromptLookup`: quotes, code, lists, names), and a
smaller model (`DraftModel`). Guesses never change an answer, only how fast it comes; so both stop guessing where it
does not pay. They know no sampling and no grammar.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from edgekit.errors import EdgekitError
from edgekit.generation.ngrams import Match, NgramIndex
from edgekit.generation.step_cost import StepCost, best_length
from edgekit.runners.base import Chunk, Runner

__all__ = ["DraftModel", "Drafter", "PromptLookup"]

logger = logging.getLogger(__name__)

# Chance that a guess is right after so many matching tokens, before anything is known: 1, 2-3, 4-7, 8-15, 16 and more.
_PRIORS = (0.3, 0.5, 0.65, 0.8, 0.9)
# A model of the same family.
_MODEL_PRIOR = 0.7
# How many observations a prior is worth, and how much of what was seen is remembered at the next.
_PRIOR_WEIGHT = 2.0
_MEMORY = 0.97
# Tokens after which a draft model that does not pay is tried again: at first, and at most.
_PAUSE, _LONGEST_PAUSE = 32, 1024
_PROBE = 4


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

    def close(self) -> None:
        """Free what the sequence held."""


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
    """

    def __init__(
        self, cost: Callable[[int], float], *, most: int = 16, min_ngram: int = 2, max_ngram: int = 16
    ) -> None:
        self._cost = cost
        self._most = most
        self._ngrams = (min_ngram, max_ngram)
        self._chances = [_Chance(prior) for prior in _PRIORS]
        self._index = NgramIndex(shortest=min_ngram, longest=max_ngram)
        self._guess: Match | None = None

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
        if match is None:
            return []
        chances = (self._chance(match.length + step).value for step in range(min(most, self._most)))
        return self._index.continuation(match.position, best_length(chances, self._cost))

    def learn(self, drafted: int, accepted: int) -> None:
        """Do nothing: the sequence itself tells, at the next draft."""

    def close(self) -> None:
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

    def _chance(self, length: int) -> _Chance:
        return self._chances[min(length.bit_length(), len(self._chances)) - 1]


class DraftModel:
    """Guesses what a smaller model of the same tokenizer would say, greedily.

    Its sequence slot follows the sequence: what was rejected is truncated, what it has not seen is run. Where its steps
    cost more than they win it pauses, longer and longer, and catches up when it tries again.

    Args:
        runner: The smaller model; it is used in between the steps of the larger one.
        slot: Its sequence slot for this sequence; empty.
        cost: Seconds of a step of the larger model that verifies so many drafted tokens: `StepCost.verifying`.
        vocab_size: Ids from here on are not drafted: the larger model has no such logits.
        most: How many tokens to draft at most.
    """

    def __init__(
        self, runner: Runner, slot: int, *, cost: Callable[[int], float], vocab_size: int, most: int = 8
    ) -> None:
        self._runner = runner
        self._slot = slot
        self._cost = cost
        self._vocab_size = vocab_size
        self._most = most
        self._chance = _Chance(_MODEL_PRIOR)
        self._own = StepCost()
        self._measured = False
        self._held: list[int] = []
        self._sure = 0
        self._pause = _PAUSE
        self._again = 0
        self._failed = False

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return what the smaller model would say; empty where that does not pay, or it failed."""
        most = min(most, self._most, self._runner.limits.context_length - len(tokens))
        if most < 1 or self._failed or not tokens:
            return []
        length = self._length(len(tokens), most)
        if not length:
            return []
        try:
            return self._run(tokens, length)
        except EdgekitError as error:
            # The answer does not depend on it.
            logger.warning("the draft model failed and is not used for the rest of this answer: %s", error.message)
            self._failed = True
            return []

    def learn(self, drafted: int, accepted: int) -> None:
        """Hear how many of the drafted tokens that were verified came true."""
        self._chance.learn(min(accepted + 1, drafted), accepted)

    def close(self) -> None:
        """Empty the sequence slot."""
        self._held, self._sure = [], 0
        self._runner.truncate(self._slot, 0)

    def _length(self, size: int, most: int) -> int:
        own = self._own(1) if self._measured else 0.0
        length = best_length([self._chance.value] * most, lambda count: self._cost(count) + count * own)
        if length:
            self._pause = _PAUSE
            self._again = size + _PAUSE
        elif size >= self._again:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._again = size + self._pause
            length = min(_PROBE, most)
        return length

    def _run(self, tokens: Sequence[int], length: int) -> list[int]:
        runner, slot = self._runner, self._slot
        start = self._agreed(tokens)
        runner.truncate(slot, start)
        del self._held[start:]
        size = runner.limits.max_chunk
        while len(tokens) - start > size:
            self._feed(tokens[start : start + size], logits=False)
            start += size
        drafted = [self._feed(tokens[start:], logits=True)]
        while len(drafted) < length:
            drafted.append(self._feed(drafted[-1:], logits=True))
        self._sure = len(tokens)
        return drafted

    def _feed(self, tokens: Sequence[int], *, logits: bool) -> int:
        started = time.perf_counter()
        (row,) = self._runner.run([Chunk(self._slot, tuple(tokens), logits="last" if logits else "none")])
        if len(tokens) == 1:
            self._own.observe(1, time.perf_counter() - started)
            self._measured = True
        self._held += tokens
        return int(row[-1, : self._vocab_size].argmax()) if logits else -1

    def _agreed(self, tokens: Sequence[int]) -> int:
        """How many tokens the slot holds already; never the last, which gives the logits."""
        agreed = self._sure if self._sure <= len(tokens) else 0
        agreed = min(agreed, len(self._held), len(tokens) - 1)
        while agreed < min(len(self._held), len(tokens) - 1) and self._held[agreed] == tokens[agreed]:
            agreed += 1
        return agreed


class _Chance:
    """How often something comes true, the recent past counting most."""

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._hits = 0.0
        self._tries = 0.0

    @property
    def value(self) -> float:
        return (self._hits + _PRIOR_WEIGHT * self._prior) / (self._tries + _PRIOR_WEIGHT)

    def learn(self, tries: int, hits: int) -> None:
        keep = _MEMORY**tries
        self._hits = self._hits * keep + hits
        self._tries = self._tries * keep + tries
