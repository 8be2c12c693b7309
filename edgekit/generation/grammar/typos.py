"""Tells a misspelt keyword from a word that JSON Schema does not know, which is an annotation."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["meant"]

# Shorter words are too close to too many others.
MIN_CHARS = 4
# From this length on two errors are still a misspelling.
LONG_CHARS = 10


def meant(word: str, known: Iterable[str]) -> str | None:
    """Return the member of `known` that is probably meant; None where the word is one of its own.

    Another case, and `_`, `-` or nothing between words, are misspellings at any length.
    """
    plain = _plain(word)
    best: tuple[int, str] | None = None
    for name in known:
        other = _plain(name)
        if plain == other:
            return name
        if len(plain) < MIN_CHARS - 1 or len(other) < MIN_CHARS:
            continue
        errors = 2 if len(other) >= LONG_CHARS else 1
        if abs(len(plain) - len(other)) <= errors and (distance := _distance(plain, other)) <= errors:
            best = min(best or (distance, name), (distance, name))
    return best[1] if best else None


def _plain(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "").replace(" ", "").lstrip("$")


def _distance(one: str, other: str) -> int:
    """Number of letters inserted, left out, replaced or swapped with the next (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for at, char in enumerate(one, 1):
        earlier, before, row = before, row, [at]
        for to, target in enumerate(other, 1):
            cost = min(before[to] + 1, row[to - 1] + 1, before[to - 1] + (char != target))
            if at > 1 and to > 1 and char == other[to - 2] and one[at - 2] == target:
                cost = min(cost, earlier[to - 2] + 1)
            row.append(cost)
    return row[-1]
