"""Token ids to text as they come, in whole characters: bytes that do not yet make one wait.

What a reader sees as one character may still be several; `graphemes.py` keeps those together.
"""

from __future__ import annotations

from edgekit.generation.tokenizer import Tokenizer

__all__ = ["Detokenizer"]

_REPLACEMENT = "\ufffd"
# A model that emits nothing but broken bytes must not be decoded over and over.
_MAX_WAITING = 64


class Detokenizer:
    """The text of one growing sequence of tokens; nothing is returned that a later token could change.

    Decoders may treat the first token of a text differently, so each step decodes from the last place where a
    character ended, and once more without what is new; the difference is what the new tokens add.

    Args:
        tokenizer: Of the model that the tokens come from.
        visible: Special tokens that have their text; the others have none.
        continued: The text goes on from another one, so that a blank it begins with belongs to it. SentencePiece puts a
            blank before a text that stands alone, and its decoders take it away again.
    """

    def __init__(self, tokenizer: Tokenizer, *, visible: frozenset[int] = frozenset(), continued: bool = False) -> None:
        self._tokenizer = tokenizer
        self._visible = visible
        self._silent = tokenizer.special_ids - visible
        # Decoders look at what comes first alone, so any text will do as the one before.
        self._context = tokenizer.encode("a", obey_special=False) if continued else []
        self._context_text = self._decode(self._context)
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """Take a token and return the text that is now certain; it may be empty."""
        if token in self._silent:
            return ""
        self._waiting.append(token)
        text = self._decode([*self._context, *self._waiting])
        if text.endswith(_REPLACEMENT) and len(self._waiting) < _MAX_WAITING:
            return ""
        return self._take(text)

    def finish(self) -> str:
        """Return what still waits; a character that never became whole is U+FFFD."""
        if not self._waiting:
            return ""
        return self._take(self._decode([*self._context, *self._waiting]))

    def _take(self, text: str) -> str:
        added = text[len(self._context_text) :]
        # A first space may have no text, and must not push the context out.
        if added:
            self._context = self._waiting
            self._context_text = self._decode(self._context)
        else:
            self._context += self._waiting
        self._waiting = []
        return added

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, visible=self._visible)
