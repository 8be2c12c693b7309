"""An n-gram index of a growing token sequence: finds earlier occurrences of its last tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Match", "NgramIndex"]


@dataclass(frozen=True, slots=True)
class Match:
    """An earlier occurrence of the sequence's last tokens.

    Attributes:
        position: Position of the token that followed it.
        length: Number of matching tokens, up to the index's `max_ngram`.
    """

    position: int
    length: int


class NgramIndex:
    """Index of a token sequence; constant time per token.

    Positions that follow the same n-gram of `min_ngram` tokens are chained, newest first, as in LZ77 compressors. A
    search follows the chain for a bounded number of candidates and takes the longest match, among equals the newest.

    Args:
        min_ngram: Minimum number of matching tokens.
        max_ngram: Maximum number of tokens compared.
        max_candidates: Maximum number of positions that a search compares.
    """

    def __init__(self, *, min_ngram: int = 2, max_ngram: int = 16, max_candidates: int = 32) -> None:
        self._min_ngram = min_ngram
        self._max_ngram = max_ngram
        self._max_candidates = max_candidates
        self._newest: dict[tuple[int, ...], int] = {}
        self._older: list[int] = []
        self.tokens: list[int] = []

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        sequence, size = self.tokens, self._min_ngram
        for token in tokens:
            # The n-gram before this token is indexed only now that a token follows it: the end never matches itself.
            position = len(sequence)
            older = -1
            if position >= size:
                gram = tuple(sequence[position - size :])
                older = self._newest.get(gram, -1)
                self._newest[gram] = position
            self._older.append(older)
            sequence.append(token)

    def find(self) -> Match | None:
        """Return the best earlier occurrence of the last tokens."""
        end, size = len(self.tokens), self._min_ngram
        position = self._newest.get(tuple(self.tokens[end - size :]), -1) if end >= size else -1
        best = None
        for _ in range(self._max_candidates):
            if position < 0:
                break
            length = self._match_length(position, end)
            if best is None or length > best.length:
                best = Match(position, length)
                if length == self._max_ngram:
                    break
            position = self._older[position]
        return best

    def continuation(self, position: int, count: int) -> list[int]:
        """Return `count` tokens from a position on; past the end, the tokens from there to the end repeat."""
        period = len(self.tokens) - position
        return [self.tokens[position + step % period] for step in range(count)]

    def _match_length(self, position: int, end: int) -> int:
        tokens, length = self.tokens, self._min_ngram
        limit = min(self._max_ngram, position)
        while length < limit and tokens[position - 1 - length] == tokens[end - 1 - length]:
            length += 1
        return length
