from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.speculative.ngrams import Match, NgramIndex


def _brute_force(tokens: Sequence[int], min_ngram: int, max_ngram: int, max_candidates: int) -> Match | None:
    """Compare every earlier position, newest first."""
    found: list[Match] = []
    for position in range(len(tokens) - 1, 0, -1):
        length = 0
        while length < min(max_ngram, position) and tokens[position - 1 - length] == tokens[len(tokens) - 1 - length]:
            length += 1
        if length >= min_ngram:
            found.append(Match(position, length))
    return max(found[:max_candidates], key=lambda match: match.length, default=None)


@given(
    pieces=st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=12),
    min_ngram=st.integers(1, 4),
    more=st.integers(0, 6),
    max_candidates=st.integers(1, 40),
)
def test_growing_piece_by_piece_finds_what_looking_everywhere_finds(
    pieces: list[list[int]], min_ngram: int, more: int, max_candidates: int
) -> None:
    index = NgramIndex(min_ngram=min_ngram, max_ngram=min_ngram + more, max_candidates=max_candidates)
    tokens: list[int] = []
    for piece in pieces:
        index.extend(piece)
        tokens += piece
        assert index.find() == _brute_force(tokens, min_ngram, min_ngram + more, max_candidates)


def test_a_continuation_past_the_end_goes_on_with_the_same_period() -> None:
    index = NgramIndex(min_ngram=2)
    index.extend([9, 1, 2, 3, 1, 2, 3, 1, 2])
    match = index.find()
    assert match is not None
    assert match.length == 5
    assert index.continuation(match.position, 7) == [3, 1, 2, 3, 1, 2, 3]


def test_the_longest_match_wins_over_a_newer_one() -> None:
    index = NgramIndex(min_ngram=2)
    index.extend([5, 6, 7, 8, 100, 0, 7, 8, 101, 5, 6, 7, 8])
    match = index.find()
    assert match is not None
    assert index.tokens[match.position] == 100
