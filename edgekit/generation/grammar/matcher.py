"""Follows one answer through its grammar: which tokens may come next, which must, and whether it may end.

It fails closed: what goes wrong inside llguidance is an error that ends the request, never an answer without its
grammar. Not safe for several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from edgekit.errors import EdgekitError
from edgekit.generation.grammar.errors import one_line
from edgekit.generation.grammar.vocabulary import Vocabulary

__all__ = ["Matcher", "MatcherFactory"]

Mask = npt.NDArray[np.int32]


class MatcherFactory:
    """What all matchers of a vocabulary share.

    Args:
        vocabulary: The model's tokens.
        vocab_size: Width of the model's logits.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids = vocabulary.eos_token_ids
        # Ids behind the tokenizer's are never allowed, even where a grammar names all there are.
        self.ends = _packed(self.eos_token_ids, vocab_size)
        self.inner = _packed(range(vocabulary.last), vocab_size) & ~self.ends
        # All matchers hand out the same words.
        self.ends.flags.writeable = False


class Matcher:
    """One answer on its way.

    Args:
        factory: What it shares with others.
        inner: llguidance's matcher, at the start of its grammar and used by nobody else.
    """

    def __init__(self, factory: MatcherFactory, inner: LLMatcher) -> None:
        self._factory = factory
        self._inner = inner
        self._mask: Mask | None = None
        self._ended = False

    @property
    def accepting(self) -> bool:
        """Whether the answer may end here."""
        accepting = self._ended or self._inner.is_accepting()
        self._check()
        return accepting

    @property
    def complete(self) -> bool:
        """Whether nothing but the end can follow."""
        return self._ended or (self._inner.is_stopped() and self.accepting)

    def mask(self) -> Mask | None:
        """Return which tokens may come next, a bit for each; end tokens exactly where the answer may end.

        Returns:
            `[ceil(vocab_size / 32)]`, token t is bit t % 32 of word t // 32. None would allow every token.

        Raises:
            EdgekitError: `grammar_failed`: nothing may follow here, or the grammar became too complex.
        """
        if self._mask is None:
            if self.complete:
                self._mask = self._factory.ends
                return self._mask
            words = np.frombuffer(self._inner.compute_bitmask(), np.int32)
            self._check()
            # llguidance gives one word more than needed where the vocabulary is a multiple of 32.
            mask = words[: len(self._factory.inner)] & self._factory.inner
            if self.accepting:
                mask |= self._factory.ends
            if not mask.any():
                raise _failure("no token can follow here")
            self._mask = mask
        return self._mask

    def accept(self, token: int) -> None:
        """Take the next token.

        Raises:
            EdgekitError: `grammar_failed`: it does not fit.
        """
        self._mask = None
        if token in self._factory.eos_token_ids:
            if not self.accepting:
                raise _failure("the answer ended too early")
            self._ended = True
            return
        if self._ended or not self._inner.consume_token(token):
            self._check()
            raise _failure(f"token {token} does not fit")

    def forced(self) -> list[int]:
        """Return tokens of which each is the only one that can follow, as the model's tokenizer would write them.

        It is empty where several can follow, or where how the text is cut into tokens depends on what comes after.
        """
        if self.complete:
            return []
        tokens = list(self._inner.compute_ff_tokens())
        self._check()
        return tokens

    def fits(self, tokens: Sequence[int]) -> int:
        """Return how many of the tokens can follow one after another, each allowed by the mask of its place.

        An end token never counts; nothing is taken.

        Raises:
            EdgekitError: `grammar_failed`.
        """
        count = 0
        try:
            while count < len(tokens) and not self.complete:
                following = self.forced() or tokens[count : count + 1]
                for token in following:
                    if count == len(tokens) or tokens[count] != token or not self._step(token):
                        return count
                    count += 1
        finally:
            if count and not self._inner.rollback(count):
                self._check()
                raise _failure("the grammar cannot go back")
        return count

    def _step(self, token: int) -> bool:
        """Take a token if it fits."""
        if token in self._factory.eos_token_ids or token >= self._factory.vocab_size:
            return False
        word, bit = divmod(token, 32)
        if not int(self._factory.inner[word]) >> bit & 1 or not self._inner.validate_tokens([token]):
            self._check()
            return False
        if not self._inner.consume_token(token):
            self._check()
            return False
        return True

    def _check(self) -> None:
        if self._inner.is_error():
            raise _failure(self._inner.get_error())


def _packed(tokens: Sequence[int] | frozenset[int] | range, vocab_size: int) -> Mask:
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _failure(cause: str) -> EdgekitError:
    return EdgekitError(f"the answer cannot be held to its grammar: {one_line(cause)}", code="grammar_failed")
