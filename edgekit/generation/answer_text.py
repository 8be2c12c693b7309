"""Tokens to what a caller may see: whole characters, without stop texts, tool calls apart."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.generation.detokenizer import Detokenizer
from edgekit.generation.graphemes import Clusters
from edgekit.generation.stops import StopFilter
from edgekit.generation.tokenizer import Tokenizer
from edgekit.generation.tools import CallStart, Piece, TextPiece, ToolFormat, ToolParser

__all__ = ["AnswerText"]


class AnswerText:
    """The text of one growing answer.

    Args:
        tokenizer: Of the model.
        stop: Texts that end the answer.
        tools: How calls look in it; None looks for none.
        parser: Finds them; None likewise.
        continued: It goes on from another text, and a blank it begins with belongs to it; see `Detokenizer`.

    Attributes:
        calls: How many calls have begun.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        tools: ToolFormat | None,
        parser: ToolParser | None,
        *,
        continued: bool = False,
    ) -> None:
        visible = frozenset[int]() if tools is None else frozenset(tools.tokens[text] for text in tools.markers)
        self._detokenizer = Detokenizer(tokenizer, visible=visible, continued=continued)
        self._stops = StopFilter(stop)
        self._parser = parser
        self._clusters = Clusters()
        self._thinking = False
        self.calls = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop text has come."""
        return self._stops.hit

    def push(self, token: int) -> list[Piece]:
        """Take a token and return what is now certain."""
        return self._pieces(self._stops.push(self._detokenizer.push(token)))

    def finish(self) -> list[Piece]:
        """Return what was kept back."""
        pieces = self._pieces(self._stops.push(self._detokenizer.finish()) + self._stops.finish())
        if self._parser is not None:
            pieces += self._whole(self._parser.finish())
        rest = self._clusters.finish()
        return [*pieces, TextPiece(rest, self._thinking)] if rest else pieces

    def _pieces(self, text: str) -> list[Piece]:
        if not text:
            return []
        return self._whole([TextPiece(text)] if self._parser is None else self._parser.push(text))

    def _whole(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Text in whole grapheme clusters; a call ends the text before it, and so does the end of reasoning."""
        whole: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, TextPiece) and piece.thinking == self._thinking and not piece.mark:
                text = self._clusters.push(piece.text)
            else:
                text = self._clusters.finish()
            if text:
                whole.append(TextPiece(text, self._thinking))
            if not isinstance(piece, TextPiece):
                self.calls += isinstance(piece, CallStart)
                whole.append(piece)
            elif piece.mark:
                self._thinking = piece.thinking
                whole.append(piece)
            elif piece.thinking != self._thinking:
                self._thinking = piece.thinking
                if text := self._clusters.push(piece.text):
                    whole.append(TextPiece(text, self._thinking))
        return whole
