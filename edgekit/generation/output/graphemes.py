"""Streams text in whole grapheme clusters: emoji sequences, flags and vowel signs are not split.

Text is split only at boundaries of Unicode's extended grapheme clusters (UAX #29), though not at all of them. The last
character waits for the next one, which may join it. Exceptions, since waiting would delay most text for a rare case:
spaces, punctuation, Latin, Greek and Cyrillic letters, kana, Han characters and Hangul syllables do not wait for a
combining mark or variation selector that might follow in another token.
"""

from __future__ import annotations

import unicodedata

__all__ = ["GraphemeBuffer"]

_JOINER = "\u200d"
# Bounds the delay of an endless run of combining marks.
_MAX_CLUSTER = 32
# Characters that extend the previous one but are not marks (category M): joiners, skin tones, tags, halfwidth kana
# voicing marks, and the vowel AM of Thai and Lao.
_EXTENDING = frozenset("\u200c\u200d\uff9e\uff9f\u0e33\u0eb3").union(
    map(chr, range(0x1F3FB, 0x1F400)), map(chr, range(0xE0020, 0xE0080))
)
# Without keycap bases, and without the carriage return, which a line feed may follow.
_ASCII = frozenset(map(chr, range(128))) - frozenset("0123456789#*\r")
# Scripts whose characters do not wait.
_NO_WAIT = (
    (0x00C0, 0x024F),  # Latin
    (0x0370, 0x0482),  # Greek, Cyrillic
    (0x048A, 0x052F),
    (0x1E00, 0x1FFF),  # Latin for Vietnamese; Greek
    (0x2010, 0x2027),  # dashes, quotation marks
    (0x3001, 0x3029),  # CJK punctuation
    (0x3041, 0x3096),  # Hiragana
    (0x30A1, 0x30FE),  # Katakana
    (0x3400, 0x9FFF),  # Han
    (0xAC00, 0xD7A3),  # Hangul syllables
    (0xFF01, 0xFF60),  # fullwidth forms
    (0x20000, 0x3FFFD),  # Han
)


class GraphemeBuffer:
    """Holds back the end of a text as long as a later character may join it."""

    def __init__(self) -> None:
        self._pending = ""

    def push(self, text: str) -> str:
        """Add text and return the complete clusters."""
        text = self._pending + text
        start = _last_cluster(text)
        if text[start:] in _ASCII or len(text) - start > _MAX_CLUSTER or _never_waits(text[start:]):
            start = len(text)
        self._pending = text[start:]
        return text[:start]

    def finish(self) -> str:
        """Return the pending text."""
        pending, self._pending = self._pending, ""
        return pending


def _last_cluster(text: str) -> int:
    """Start of the last cluster, or an earlier boundary."""
    start = len(text)
    while start > 0:
        start -= 1
        char = text[start]
        if start == 0 or len(text) - start > _MAX_CLUSTER:
            break
        if _is_flag(char):
            # A flag is a pair of regional indicators: an even run consists of complete flags.
            run = 1
            while start > run - 1 and _is_flag(text[start - run]):
                run += 1
            if run > 1:
                return start if run % 2 else start - 1
        if not _joins(text[start - 1], char) and not _is_conjunct(text, start):
            break
    return start


def _joins(before: str, char: str) -> bool:
    if char < "\u0300" and before < "\u00ad":
        return before == "\r" and char == "\n"
    return (
        char in _EXTENDING
        or _is_mark(char)
        or before == _JOINER
        # Prepended signs, such as the Arabic number sign.
        or unicodedata.category(before) == "Cf"
        or before in "\u0d4e\U000111c2\U000111c3"
        # Conjoining Hangul jamo.
        or (_is_jamo(char) and (_is_jamo(before) or "\uac00" <= before <= "\ud7a3"))
    )


def _is_conjunct(text: str, start: int) -> bool:
    """Whether a virama among the preceding marks joins the consonant at `start` to the cluster before it."""
    for before in reversed(text[max(0, start - _MAX_CLUSTER) : start]):
        if unicodedata.combining(before) == 9:
            return True
        if not _is_mark(before) and before not in _EXTENDING:
            return False
    return False


def _is_mark(char: str) -> bool:
    # Categories Mn, Mc, Me.
    return unicodedata.category(char)[0] == "M"


def _never_waits(cluster: str) -> bool:
    if len(cluster) != 1:
        return not cluster
    return any(low <= ord(cluster) <= high for low, high in _NO_WAIT)


def _is_flag(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _is_jamo(char: str) -> bool:
    return "\u1100" <= char <= "\u11ff" or "\ua960" <= char <= "\ua97c" or "\ud7b0" <= char <= "\ud7fb"
