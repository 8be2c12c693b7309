"""Which words count as misspelt."""

from __future__ import annotations

import pytest

from edgekit.generation.grammar.typos import meant


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [
        # Inserted, left out, replaced, swapped.
        ("forrmat", "format", True),
        ("fomat", "format", True),
        ("formet", "format", True),
        ("fromat", "format", True),
        ("formta", "format", True),
        # Two errors: only in a long word.
        ("frmet", "format", False),
        ("fxrmxt", "format", False),
        ("uniqeItem", "uniqueItems", True),
        ("additionlProprties", "additionalProperties", True),
        ("uniqutemss", "uniqueItems", False),
        ("xyniqueItemsz", "uniqueItems", False),
        # A word of nine letters is not long yet, one of ten is.
        ("minimumxx", "minimumly", False),
        ("dependenxx", "dependenly", True),
        # Short words.
        ("nux", "null", False),
        ("nul", "null", True),
        ("nu", "null", False),
        ("not", "nots", True),
        ("nota", "not", False),
        # Another spelling of the same word, at any length.
        ("NOT", "not", True),
        ("_n-o t", "not", True),
        ("ref", "$ref", True),
        ("min_length", "minLength", True),
    ],
)
def test_a_word_is_misspelt_if_few_letters_differ_for_its_length(word: str, known: str, found: bool) -> None:
    assert meant(word, [known]) == (known if found else None)


def test_of_several_similar_words_the_nearest_is_meant() -> None:
    assert meant("minimumlength", ["minimumwidthh", "minimumlengths", "minimumlengt"]) == "minimumlengt"
    assert meant("maxLengthOf", ["maxLengthOfAll", "maxLengthOff"]) == "maxLengthOff"
    assert meant("maxLengthOf", ["maxLengthOff", "maxLengthIff"]) == "maxLengthOff"


def test_no_word_is_meant_where_none_is_similar() -> None:
    assert meant("description", ["minimum", "maximum"]) is None
    assert meant("description", []) is None
