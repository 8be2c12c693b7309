"""Tracks one output through its grammar: allowed tokens, forced tokens, and whether the output may end.

It fails closed: an error inside llguidance ends the request; the output never continues unconstrained. Not thread-safe.

Copies of one llguidance matcher share a lexer: an automaton that grows with every output, up to a maximum of states.
Neither other outputs nor draft tokens may use up what an output needs. So an output that finds the shared automaton
full continues with a larger one, and when that is full with one of its own, and without drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from edgekit.errors import EdgekitError
from edgekit.generation.grammar.errors import one_line
from edgekit.generation.grammar.vocabulary import Vocabulary

__all__ = ["Automaton", "Matcher", "MatcherFactory"]

Mask = npt.NDArray[np.int32]
_T = TypeVar("_T")

# Automata of its own that one output may fill, one after the other. Each takes up to 60 MiB while it is used.
MAX_RENEWALS = 8


@dataclass(frozen=True, slots=True)
class Automaton:
    """What a matcher advances.

    Attributes:
        inner: llguidance's matcher at the start of its grammar, not used elsewhere.
        shared: Whether other matchers fill its lexer too.
        next: Returns another one, with room.
    """

    inner: LLMatcher
    shared: bool
    next: Callable[[], Automaton]


class MatcherFactory:
    """State shared by all matchers of a vocabulary.

    Args:
        vocabulary: The model's tokens.
        vocab_size: Width of the model's logits.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids = vocabulary.eos_token_ids
        # Ids beyond the tokenizer's are never allowed, even where a grammar allows any token.
        self.ends = _packed(self.eos_token_ids, vocab_size)
        self.inner = _packed(range(vocabulary.last), vocab_size) & ~self.ends
        # Shared by all matchers.
        self.ends.flags.writeable = False
        # The same as booleans, and which of them close something in JSON.
        self.allowed = np.unpackbits(self.inner.view(np.uint8), bitorder="little").astype(np.bool_)
        self.closing = np.zeros(len(self.allowed), np.bool_)
        self.closing[vocabulary.closing] = True


class Matcher:
    """The grammar state of one output.

    Args:
        factory: State shared with other matchers.
        automaton: The grammar's, shared with other matchers.
    """

    def __init__(self, factory: MatcherFactory, automaton: Automaton) -> None:
        self._factory = factory
        self._automaton = automaton
        self._inner = automaton.inner
        self._renewals = 0
        self._tokens: list[int] = []
        self._mask: Mask | None = None
        # The draft tokens that fit, each with the mask after it.
        self._drafted: list[tuple[int, Mask | None]] = []
        self._ended = False
        self._failed: str | None = None

    @property
    def accepting(self) -> bool:
        """Whether the output may end here."""
        return self._ended or self._ask(LLMatcher.is_accepting)

    @property
    def complete(self) -> bool:
        """Whether only the end can follow."""
        return self._ended or (self._inner.is_stopped() and self.accepting)

    def mask(self) -> Mask | None:
        """Return the allowed next tokens as a bit mask; end tokens are allowed exactly where the output may end.

        Returns:
            int32 `[ceil(vocab_size / 32)]`; token t is bit t % 32 of word t // 32. None would allow every token.

        Raises:
            EdgekitError: `grammar_failed`: no token is allowed here, or the grammar became too complex.
        """
        if self._mask is None:
            self._mask = self._factory.ends if self.complete else self._ask(self._compute_mask)
        return self._mask

    def accept(self, token: int) -> None:
        """Advance by one token.

        Raises:
            EdgekitError: `grammar_failed`: the token is not allowed.
        """
        drafted, self._drafted, self._mask = self._drafted, [], None
        if token in self._factory.eos_token_ids:
            if not self.accepting:
                raise _failure("the output ended too early")
            self._ended = True
            return
        if self._ended or not self._ask(LLMatcher.consume_token, token):
            raise _failure(f"token {token} is not allowed")
        self._tokens.append(token)
        if drafted and drafted[0][0] == token:
            self._mask, self._drafted = drafted[0][1], drafted[1:]

    def forced(self) -> list[int]:
        """Return the forced tokens: each is the only continuation, tokenized as the model's tokenizer would.

        Empty where several tokens are allowed, or where the tokenization depends on the text that follows.
        """
        if self.complete:
            return []
        return list(self._ask(LLMatcher.compute_ff_tokens))

    def fits(self, tokens: Sequence[int]) -> int:
        """Return the length of the longest allowed prefix of draft tokens, each allowed by the mask at its position.

        End tokens are never counted; the state does not change. The masks are kept until the tokens are accepted. An
        output with an automaton of its own has no fitting drafts.

        Raises:
            EdgekitError: `grammar_failed`.
        """
        following = mask = self.mask()
        drafted: list[tuple[int, Mask | None]] = []
        if not self._automaton.shared:
            return 0
        try:
            for token in tokens:
                if not self._allows(following, token) or not self._checked(LLMatcher.consume_token, token):
                    break
                # The mask after the last draft token is computed once it is accepted.
                last = len(drafted) + 1 == len(tokens) or self._inner.is_stopped()
                following = None if last else self._checked(self._compute_mask)
                drafted.append((token, following))
            if drafted:
                self._checked(LLMatcher.rollback, len(drafted))
        except EdgekitError:
            self._recover()
            return self.fits(tokens)
        self._mask, self._drafted = mask, drafted
        return len(drafted)

    def _allows(self, mask: Mask | None, token: int) -> bool:
        if mask is None or token in self._factory.eos_token_ids or token >= self._factory.vocab_size:
            return False
        word, bit = divmod(token, 32)
        return bool(int(mask[word]) >> bit & 1)

    def _compute_mask(self, inner: LLMatcher) -> Mask:
        words = np.frombuffer(inner.compute_bitmask(), np.int32)
        # llguidance returns an extra word if the vocabulary size is a multiple of 32.
        mask: Mask = words[: len(self._factory.inner)] & self._factory.inner
        if inner.is_accepting():
            mask |= self._factory.ends
        if not mask.any() and not inner.is_error():
            raise _failure("no token is allowed here")
        return mask

    def _ask(self, question: Callable[..., _T], *arguments: int) -> _T:
        """Return llguidance's answer; after an error, ask again with an automaton that has room."""
        if self._failed is not None:
            raise EdgekitError(self._failed, code="grammar_failed")
        recovered = False
        while True:
            try:
                return self._checked(question, *arguments)
            except EdgekitError as error:
                if recovered and not self._automaton.shared:
                    self._failed = error.message
                    raise
            self._recover()
            recovered = True

    def _recover(self) -> None:
        """Continue with another automaton: an error may be due to what others did with the shared one.

        llguidance does not tell whether a token was rejected by the grammar or by an automaton without room.
        """
        self._drafted = []
        if self._renewals < MAX_RENEWALS:
            self._automaton = self._automaton.next()
            self._renewals += not self._automaton.shared
            self._inner = self._automaton.inner
            self._inner.consume_tokens(self._tokens)

    def _checked(self, question: Callable[..., _T], *arguments: int) -> _T:
        answer = question(self._inner, *arguments)
        if self._inner.is_error():
            raise _failure(self._inner.get_error())
        return answer


def _packed(tokens: Sequence[int] | frozenset[int] | range, vocab_size: int) -> Mask:
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _failure(cause: str) -> EdgekitError:
    return EdgekitError(f"the output cannot be constrained to its grammar: {one_line(cause)}", code="grammar_failed")
