"""Streaming detokenization: token ids in, text out; an incomplete UTF-8 character waits for its remaining bytes.

A user-perceived character may consist of several code points; `graphemes.py` keeps those together.
"""

from __future__ import annotations

from edgekit.generation.chat.tokenizer import Tokenizer

__all__ = ["Detokenizer"]

_REPLACEMENT = "\ufffd"
# Limits the repeated decoding of a model that emits only invalid bytes.
_MAX_PENDING = 64


class Detokenizer:
    """Decodes one growing sequence of tokens and returns only text that no later token can change.

    Decoders may treat the first token of a text differently. So each step decodes the tokens since the last complete
    character together with the tokens before them (the context), and returns what exceeds the context's text.

    Args:
        tokenizer: The model's tokenizer.
        visible: Special tokens to include as text; all others have none.
        continued: The text continues another one, so its leading space is kept. SentencePiece prepends a space to
            standalone text, and its decoders strip it.
    """

    def __init__(self, tokenizer: Tokenizer, *, visible: frozenset[int] = frozenset(), continued: bool = False) -> None:
        self._tokenizer = tokenizer
        self._visible = visible
        self._invisible = tokenizer.special_ids - visible
        # Decoders treat only the first token differently, so any preceding text will do.
        self._context = tokenizer.encode("a", obey_special=False) if continued else []
        self._context_text = self._decode(self._context)
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Add a token and return the text that is now final; it may be empty."""
        if token in self._invisible:
            return ""
        self._pending.append(token)
        text = self._decode([*self._context, *self._pending])
        if text.endswith(_REPLACEMENT) and len(self._pending) < _MAX_PENDING:
            return ""
        return self._take(text)

    def finish(self) -> str:
        """Return the pending text; an incomplete character becomes U+FFFD."""
        if not self._pending:
            return ""
        return self._take(self._decode([*self._context, *self._pending]))

    def _take(self, text: str) -> str:
        added = text[len(self._context_text) :]
        # A leading space may decode to nothing; it must not replace the context.
        if added:
            self._context = self._pending
            self._context_text = self._decode(self._context)
        else:
            self._context += self._pending
        self._pending = []
        return added

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, visible=self._visible)
