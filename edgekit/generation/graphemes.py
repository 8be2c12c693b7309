"""Text as it comes, cut only between what a reader sees as characters: emoji sequences, flags, vowel signs.

Boundaries are a part of those of Unicode's extended grapheme clusters (UAX #29), so no cluster is cut. The last
character waits until the next shows whether it joins, but not where that would delay most of all text for the sake of
what hardly any holds: a space, punctuation, a letter of Latin, Greek or Cyrillic, a kana, a Han character or a Hangul
syllable does not wait for a combining mark or variation selector that might follow it in another token.
"""

from __future__ import annotations

import unicodedata

__all__ = ["Clusters"]

_JOINER = "\u200d"
# Endless marks must not keep text back for ever.
_MAX_CLUSTER = 32
# Characters that go on the one before and are no marks: joiners, skin tones, tags, the halfwidth kana's voice marks,
# and the vowels AM of Thai and Lao.
_JOINING = frozenset("\u200c\u200d\uff9e\uff9f\u0e33\u0eb3").union(
    map(chr, range(0x1F3FB, 0x1F400)), map(chr, range(0xE0020, 0xE0080))
)
# Without what becomes a keycap and, before a line feed, the carriage return.
_ASCII = frozenset(map(chr, range(128))) - frozenset("0123456789#*\r")
_CLOSED = (
    (0x00C0, 0x024F),  # Latin
    (0x0370, 0x0482),  # Greek, Cyrillic
    (0x048A, 0x052F),
    (0x1E00, 0x1FFF),  # Latin, as Vietnamese has it; Greek
    (0x2010, 0x2027),  # dashes, quotation marks
    (0x3001, 0x3029),  # punctuation of Chinese and Japanese
    (0x3041, 0x3096),  # Hiragana
    (0x30A1, 0x30FE),  # Katakana
    (0x3400, 0x9FFF),  # Han
    (0xAC00, 0xD7A3),  # Hangul syllables
    (0xFF01, 0xFF60),  # full widths
    (0x20000, 0x3FFFD),  # Han
)


class Clusters:
    """Keeps back the end of a text while a later character may still join it."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """Take text and return what is complete."""
        text = self._held + text
        start = _last_cluster(text)
        if text[start:] in _ASCII or len(text) - start > _MAX_CLUSTER or _is_closed(text[start:]):
            start = len(text)
        self._held = text[start:]
        return text[:start]

    def finish(self) -> str:
        """Return what is held."""
        held, self._held = self._held, ""
        return held


def _last_cluster(text: str) -> int:
    """Where the last cluster begins, or one that holds it."""
    start = len(text)
    while start > 0:
        start -= 1
        char = text[start]
        if start == 0 or len(text) - start > _MAX_CLUSTER:
            break
        if _is_flag(char):
            # Flags are pairs of letters: an even run is complete pairs.
            run = 1
            while start > run - 1 and _is_flag(text[start - run]):
                run += 1
            if run > 1:
                return start if run % 2 else start - 1
        if not _joins(text[start - 1], char) and not _is_bound(text, start):
            break
    return start


def _joins(before: str, char: str) -> bool:
    if char < "\u0300" and before < "\u00ad":
        return before == "\r" and char == "\n"
    return (
        char in _JOINING
        or _is_mark(char)
        or before == _JOINER
        # Signs such as the Arabic number sign stand before what they belong to.
        or unicodedata.category(before) == "Cf"
        or before in "\u0d4e\U000111c2\U000111c3"
        # Hangul in its parts.
        or (_is_jamo(char) and (_is_jamo(before) or "\uac00" <= before <= "\ud7a3"))
    )


def _is_bound(text: str, start: int) -> bool:
    """Whether a virama among the marks before it binds a consonant to what precedes."""
    for before in reversed(text[max(0, start - _MAX_CLUSTER) : start]):
        if unicodedata.combining(before) == 9:
            return True
        if not _is_mark(before) and before not in _JOINING:
            return False
    return False


def _is_mark(char: str) -> bool:
    # Mn, Mc, Me.
    return unicodedata.category(char)[0] == "M"


def _is_closed(cluster: str) -> bool:
    if len(cluster) != 1:
        return not cluster
    return any(low <= ord(cluster) <= high for low, high in _CLOSED)


def _is_flag(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _is_jamo(char: str) -> bool:
    return "\u1100" <= char <= "\u11ff" or "\ua960" <= char <= "\ua97c" or "\ud7b0" <= char <= "\ud7fb"
