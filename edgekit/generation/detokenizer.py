"""Token ids to text as they come, in whole characters.

Two stages: bytes that do not yet make a character wait, and so do characters that a later one may join (emoji
sequences, vowel signs of Thai, Arabic or the Indic scripts). Latin letters and Han characters are never kept waiting.
"""

from __future__ import annotations

import unicodedata

from edgekit.generation.tokenizer import Tokenizer

__all__ = ["Clusters", "Detokenizer"]

_REPLACEMENT = "\ufffd"
_JOINER = "\u200d"
# A model that emits nothing but broken bytes must not be decoded over and over.
_MAX_WAITING = 64
_MAX_CLUSTER = 32


class Detokenizer:
    """The text of one growing sequence of tokens; nothing is returned that a later token could change.

    Decoders may treat the first token of a text differently, so each step decodes from the last place where a
    character ended, and once more without what is new; the difference is what the new tokens add.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._context_text = ""
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """Take a token and return the text that is now certain; it may be empty."""
        self._waiting.append(token)
        text = self._tokenizer.decode([*self._context, *self._waiting])
        if text.endswith(_REPLACEMENT) and len(self._waiting) < _MAX_WAITING:
            return ""
        return self._take(text)

    def finish(self) -> str:
        """Return what still waits; a character that never became whole is U+FFFD."""
        if not self._waiting:
            return ""
        return self._take(self._tokenizer.decode([*self._context, *self._waiting]))

    def _take(self, text: str) -> str:
        added = text[len(self._context_text) :]
        # Tokens without text (special ones) must not push the context out.
        if added:
            self._context = self._waiting
            self._context_text = self._tokenizer.decode(self._context)
        else:
            self._context += self._waiting
        self._waiting = []
        return added


class Clusters:
    """Keeps back the last character of a text while a later one may still join it."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """Take text and return what is complete."""
        text = self._held + text
        start = _last_cluster(text)
        if start < len(text) and (len(text) - start > _MAX_CLUSTER or not _may_grow(text[start:])):
            start = len(text)
        self._held = text[start:]
        return text[:start]

    def finish(self) -> str:
        """Return what is held."""
        held, self._held = self._held, ""
        return held


def _last_cluster(text: str) -> int:
    """Where the last cluster begins; a practical part of Unicode's rules (UAX #29)."""
    start = len(text)
    while start > 0:
        start -= 1
        char = text[start]
        before = text[start - 1] if start else ""
        if before and (before == _JOINER or _extends(char)):
            continue
        if before and unicodedata.combining(before) == 9:
            # A virama binds the next consonant.
            continue
        if _is_flag(char):
            # Flags are pairs of letters: an even run is complete pairs.
            run = 1
            while start - run >= 0 and _is_flag(text[start - run]):
                run += 1
            return start if run % 2 else start - 1
        break
    return start


def _extends(char: str) -> bool:
    # Mn, Mc, Me: marks. Emoji modifiers and tags are letters or symbols to Unicode.
    return (
        unicodedata.category(char)[0] == "M"
        or char in {_JOINER, "\u200c"}
        or "\U0001f3fb" <= char <= "\U0001f3ff"
        or "\U000e0020" <= char <= "\U000e007f"
    )


def _is_flag(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _may_grow(cluster: str) -> bool:
    base = cluster[0]
    if _is_flag(base):
        return len(cluster) == 1
    if cluster[-1] == _JOINER:
        return True
    return (
        # Hebrew to Myanmar: Arabic, Indic, Thai, Lao, Tibetan and others that write vowels as marks; Khmer.
        "\u0590" <= base <= "\u109f"
        or "\u1780" <= base <= "\u17ff"
        # Emoji and the symbols that a variation selector turns into one.
        or "\u2190" <= base <= "\u2bff"
        or "\U0001f000" <= base <= "\U0001faff"
    )
