r"""The tool-call format of Qwen3: Hermes' calls, preceded by the model's reasoning in `<think>` tags.

Reasoning is emitted as text, tags included, and marked by `TextDelta.thinking`. Calls inside it are not executed. Other
models put their reasoning in the same tags, so this is also their format without tools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.generation.chat.stop_strings import overlap
from edgekit.generation.grammar.lark import lark_text
from edgekit.generation.tools.events import ParserEvent
from edgekit.generation.tools.hermes import Hermes, HermesParser
from edgekit.generation.tools.lark import pattern, token
from edgekit.generation.tools.parser import ToolParser
from edgekit.generation.types import Tool

__all__ = ["Qwen3"]

THINK, DONE = "<think>", "</think>"
# Fixed as in the template; if it were free, text could also start here.
_GAP = "\n\n"


class Qwen3(Hermes):
    """Reasoning in `<think>` tags, then Hermes' calls."""

    MARKERS = (*Hermes.MARKERS, THINK, DONE)

    @classmethod
    def matches(cls, source: str) -> bool:
        """Whether the template matches Hermes and mentions reasoning."""
        return super().matches(source) and cls.reasons(source)

    @staticmethod
    def reasons(source: str) -> bool:
        """Whether a chat template uses reasoning tags, with or without tools."""
        return DONE in source

    def parser(
        self,
        ids: Callable[[], str],
        tools: Sequence[Tool],
        *,
        enforced: bool = False,
        required: bool = False,
        thinking: bool = False,
        parallel: bool = True,
    ) -> ToolParser:
        """As `ToolFormat.parser`."""
        return _Parser(ids, tools, stream=enforced, required=required, parallel=parallel, thinking=thinking)

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
    """Parses reasoning first."""

    def __init__(
        self,
        ids: Callable[[], str],
        tools: Sequence[Tool],
        *,
        stream: bool,
        required: bool,
        parallel: bool,
        thinking: bool,
    ) -> None:
        super().__init__(ids, tools, stream=stream, required=required, parallel=parallel)
        self._state = self._think if thinking else self._begin

    def finish(self) -> list[ParserEvent]:
        """As `ToolParser.finish`."""
        if self._state in {self._think, self._thought}:
            self._emit(self._buffer, thinking=True, delimiter=self._state == self._thought)
            self._buffer = ""
        return super().finish()

    @property
    def thinking(self) -> bool:
        """As `ToolParser.thinking`."""
        return self._state == self._think

    def _begin(self) -> bool:
        rest = self._buffer.lstrip()
        if rest.startswith(THINK):
            self._emit(self._buffer[: -len(rest)], thinking=True, delimiter=True)
            self._emit(THINK, thinking=True, delimiter=True)
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
            stop = len(self._buffer) - overlap(self._buffer, DONE)
            self._emit(self._buffer[:stop], thinking=True)
            self._buffer = self._buffer[stop:]
            return False
        self._emit(self._buffer[:start], thinking=True)
        self._emit(DONE, thinking=True, delimiter=True)
        self._buffer = self._buffer[start + len(DONE) :]
        self._state = self._thought
        return True

    def _thought(self) -> bool:
        """White space between reasoning and answer."""
        rest = self._buffer.lstrip()
        self._emit(self._buffer[: len(self._buffer) - len(rest)], thinking=True, delimiter=True)
        self._buffer = rest
        if not rest:
            return False
        self._state = self._text
        return True
