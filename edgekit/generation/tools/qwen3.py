r"""Calls as Qwen3 writes them: Hermes' calls, and before them, between `<think>` tags, the model's reasoning.

Reasoning comes as pieces of text, tags included; `TextPiece.thinking` tells it apart. Calls in it are thoughts and
never made. Other models reason between the same tags, so without tools this is their format too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.generation.grammar.lark import lark_text
from edgekit.generation.request import Tool
from edgekit.generation.stops import overlap
from edgekit.generation.tools.base import Piece
from edgekit.generation.tools.hermes import Hermes, HermesParser
from edgekit.generation.tools.lark import pattern, token
from edgekit.generation.tools.parser import ToolParser

__all__ = ["Qwen3"]

THINK, DONE = "<think>", "</think>"
# As the template writes it; free, it would be one more place where text may begin.
_GAP = "\n\n"


class Qwen3(Hermes):
    """`<think>` tags, then Hermes' calls."""

    MARKERS = (*Hermes.MARKERS, THINK, DONE)

    @classmethod
    def matches(cls, source: str) -> bool:
        """It is Hermes' and mentions reasoning."""
        return super().matches(source) and cls.reasons(source)

    @staticmethod
    def reasons(source: str) -> bool:
        """Whether a chat template knows reasoning between these tags, tools or none."""
        return DONE in source

    def parser(
        self,
        ids: Callable[[], str],
        tools: Sequence[Tool],
        *,
        enforced: bool = False,
        thinking: bool = False,
        parallel: bool = True,
    ) -> ToolParser:
        """As `ToolFormat.parser`."""
        return _Parser(ids, tools, stream=enforced, parallel=parallel, thinking=thinking)

    def _before(self, *, thinking: bool) -> str:
        thoughts = f"thoughts {lark_text(_GAP)} "
        return thoughts if thinking else f"({token(self.tokens, THINK)} {thoughts})? "

    def _unfinished(self, *, thinking: bool) -> str:
        return " | ANY" if thinking else f" | {token(self.tokens, THINK)} ANY"

    def _rules(self) -> list[str]:
        special = DONE in self.tokens
        return [f"thoughts{'' if special else '[lazy]'}: ANY {token(self.tokens, DONE)}"]

    def _not_before(self) -> str:
        return "" if THINK in self.tokens else f" & ~/{pattern(THINK)}(?s:.*)/"


class _Parser(HermesParser):
    """Takes reasoning first."""

    def __init__(
        self, ids: Callable[[], str], tools: Sequence[Tool], *, stream: bool, parallel: bool, thinking: bool
    ) -> None:
        super().__init__(ids, tools, stream=stream, parallel=parallel)
        self._state = self._think if thinking else self._begin

    def finish(self) -> list[Piece]:
        """As `ToolParser.finish`."""
        if self._state in {self._think, self._thought}:
            self._emit(self._buffer, thinking=True, mark=self._state == self._thought)
            self._buffer = ""
        return super().finish()

    def _begin(self) -> bool:
        rest = self._buffer.lstrip()
        if rest.startswith(THINK):
            self._emit(self._buffer[: -len(rest)], thinking=True, mark=True)
            self._emit(THINK, thinking=True, mark=True)
            self._buffer = rest[len(THINK) :]
            self._state = self._think
        elif THINK.startswith(rest):
            return False
        else:
            self._state = self._text
        return True

    def _think(self) -> bool:
        start = self._buffer.find(DONE)
        if start < 0:
            keep = len(self._buffer) - overlap(self._buffer, DONE)
            self._emit(self._buffer[:keep], thinking=True)
            self._buffer = self._buffer[keep:]
            return False
        self._emit(self._buffer[:start], thinking=True)
        self._emit(DONE, thinking=True, mark=True)
        self._buffer = self._buffer[start + len(DONE) :]
        self._state = self._thought
        return True

    def _thought(self) -> bool:
        """White space between reasoning and answer."""
        rest = self._buffer.lstrip()
        self._emit(self._buffer[: len(self._buffer) - len(rest)], thinking=True, mark=True)
        self._buffer = rest
        if not rest:
            return False
        self._state = self._text
        return True
