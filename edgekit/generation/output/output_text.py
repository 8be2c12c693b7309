"""Turns the generated tokens of one choice into events: whole characters, stop strings removed, tool calls apart."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.generation.chat.stop_strings import StopFilter
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.output.detokenizer import Detokenizer
from edgekit.generation.output.graphemes import GraphemeBuffer
from edgekit.generation.output.indent_filter import IndentFilter
from edgekit.generation.tools import CallStart, ParserEvent, TextDelta, ToolFormat, ToolParser

__all__ = ["OutputText"]


class OutputText:
    """Detokenizes, filters and parses one growing output.

    Args:
        tokenizer: The model's tokenizer.
        stop: Stop strings.
        tools: The tool-call format, whose markers must reach the parser; None if nothing is parsed.
        parser: Finds tool calls and reasoning; None if nothing is parsed.
        continued: The output continues another text and keeps its leading space; see `Detokenizer`.
        min_indent: The output ends before a line that is indented by less.

    Attributes:
        calls: Number of calls begun.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        tools: ToolFormat | None,
        parser: ToolParser | None,
        *,
        continued: bool = False,
        min_indent: int = 0,
    ) -> None:
        visible = frozenset[int]() if tools is None else frozenset(tools.tokens[text] for text in tools.markers)
        self._detokenizer = Detokenizer(tokenizer, visible=visible, continued=continued)
        self._stops = StopFilter(stop)
        self._lines = IndentFilter(min_indent)
        self._parser = parser
        self._graphemes = GraphemeBuffer()
        self._thinking = False
        self.calls = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string, or a line that is indented by too little, has been found."""
        return self._stops.hit or self._lines.hit

    @property
    def stop_string(self) -> str | None:
        """The stop string that has been found."""
        return self._stops.found

    @property
    def thinking(self) -> bool:
        """Whether the output so far ends inside the model's reasoning."""
        return self._parser is not None and self._parser.thinking

    def push(self, token: int) -> list[ParserEvent]:
        """Add a token and return the events that are now final."""
        return self._parse(self._lines.push(self._stops.push(self._detokenizer.push(token))))

    def finish(self) -> list[ParserEvent]:
        """Return the events for everything held back."""
        text = self._stops.push(self._detokenizer.finish()) + self._stops.finish()
        events = self._parse(self._lines.push(text) + self._lines.finish())
        if self._parser is not None:
            events += self._split_at_graphemes(self._parser.finish())
        rest = self._graphemes.finish()
        return [*events, TextDelta(rest, self._thinking)] if rest else events

    def _parse(self, text: str) -> list[ParserEvent]:
        if not text:
            return []
        return self._split_at_graphemes([TextDelta(text)] if self._parser is None else self._parser.push(text))

    def _split_at_graphemes(self, events: Sequence[ParserEvent]) -> list[ParserEvent]:
        """Return the events with text in whole grapheme clusters; a call or the end of reasoning flushes the text."""
        out: list[ParserEvent] = []
        for event in events:
            if isinstance(event, TextDelta) and event.thinking == self._thinking and not event.delimiter:
                text = self._graphemes.push(event.text)
            else:
                text = self._graphemes.finish()
            if text:
                out.append(TextDelta(text, self._thinking))
            if not isinstance(event, TextDelta):
                self.calls += isinstance(event, CallStart)
                out.append(event)
            elif event.delimiter:
                self._thinking = event.thinking
                out.append(event)
            elif event.thinking != self._thinking:
                self._thinking = event.thinking
                if text := self._graphemes.push(event.text):
                    out.append(TextDelta(text, self._thinking))
        return out
