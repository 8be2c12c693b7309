"""Where the end of a growing sequence stood before: an index of its n-grams.

It knows token ids only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Match", "NgramIndex"]


@dataclass(frozen=True, slots=True)
class Match:
    """An earlier place with the same tokens before it as the end has.

    Attributes:
        position: Of the token that came next there.
        length: How many tokens before it are the same, up to the index's `longest`.
    """

    position: int
    length: int


class NgramIndex:
    """A sequence of tokens that finds its own end again; constant time for each token.

    Places that follow the same n-gram of `shortest` tokens are chained, the newest first, as in LZ77 compressors; a
    search follows the chain for a bounded number of places and takes the longest match, of equal ones the newest.

    Args:
        shortest: Tokens that must match at least.
        longest: Tokens that are compared at most.
        places: How many places a search looks at.
    """

    def __init__(self, *, shortest: int = 2, longest: int = 16, places: int = 32) -> None:
        self._shortest = shortest
        self._longest = longest
        self._places = places
        self._newest: dict[tuple[int, ...], int] = {}
        self._older: list[int] = []
        self.tokens: list[int] = []

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        sequence, size = self.tokens, self._shortest
        for token in tokens:
            # The n-gram before this token has a next token only now: the end never finds itself.
            here = len(sequence)
            older = -1
            if here >= size:
                gram = tuple(sequence[here - size :])
                older = self._newest.get(gram, -1)
                self._newest[gram] = here
            self._older.append(older)
            sequence.append(token)

    def find(self) -> Match | None:
        """Where the end stood before."""
        end = len(self.tokens)
        place = self._newest.get(tuple(self.tokens[end - self._shortest :]), -1) if end >= self._shortest else -1
        best = None
        for _ in range(self._places):
            if place < 0:
                break
            length = self._common(place, end)
            if best is None or length > best.length:
                best = Match(place, length)
                if length == self._longest:
                    break
            place = self._older[place]
        return best

    def continuation(self, position: int, count: int) -> list[int]:
        """What came from a position on; past the end it goes on as what is between them, again and again."""
        period = len(self.tokens) - position
        return [self.tokens[position + step % period] for step in range(count)]

    def _common(self, place: int, end: int) -> int:
        tokens, length = self.tokens, self._shortest
        most = min(self._longest, place)
        while length < most and tokens[place - 1 - length] == tokens[end - 1 - length]:
            length += 1
        return length
