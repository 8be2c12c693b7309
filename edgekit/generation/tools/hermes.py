r"""The tool-call format of Hermes 2 Pro and Qwen2.5; several calls may follow each other.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Qwen2.5-Coder's published template shows the object in doubled braces by mistake, so models may write that; the Coder
models also tend to put the object in a Markdown fence (```json). The parser accepts both. The grammar does not treat a
fence as an opening marker, so a strict tool cannot be called with one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from edgekit.generation.grammar.lark import lark_text
from edgekit.generation.tools.base import ToolFormat
from edgekit.generation.tools.lark import ANY_TEXT, NEWLINE, call_objects, callable_tools, text_without, token
from edgekit.generation.tools.parser import ToolParser
from edgekit.generation.types import Tool, ToolChoice

__all__ = ["Hermes", "HermesParser"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FENCE, FENCE_END = "```json\n", "```"
# Qwen3-Coder and GLM write XML between the same tags.
_FOREIGN = ("<function=", "<arg_key>")
_TAIL = "}\n"


class HermesParser(ToolParser):
    """Finds `<tool_call>` tags and JSON fences."""

    OPENINGS = (OPEN, FENCE)

    def __init__(
        self, ids: Callable[[], str], tools: Sequence[Tool], *, stream: bool, required: bool, parallel: bool
    ) -> None:
        super().__init__(ids, tools, stream=stream, required=required, parallel=parallel)
        self._lenient = frozenset(tool.name for tool in tools if not tool.strict)
        self._fenced = False
        self._doubled = False

    def _opened(self) -> bool:
        self._fenced = self._raw.endswith(FENCE)
        rest = self._buffer.lstrip()
        if rest == "{":
            # A second brace may follow.
            return False
        self._doubled = rest.startswith("{{")
        if self._doubled:
            self._advance(self._buffer.index("{") + 1)
        return super()._opened()

    def _begun(self) -> bool:
        return super()._begun() and not self._fenced

    def _known(self, name: str) -> bool:
        return super()._known(name) and (name in self._lenient or not self._fenced)

    def _stream_arguments(self) -> None:
        if not self._fenced:
            super()._stream_arguments()

    def _closing(self) -> bool:
        rest = self._buffer.lstrip()
        if self._doubled and rest:
            if rest[0] == "}":
                self._buffer = rest[1:]
            self._doubled = False
            return True
        close = FENCE_END if self._fenced else CLOSE
        if rest.startswith(close):
            self._buffer = rest[len(close) :]
        elif close.startswith(rest):
            return False
        self._state = self._gap
        return True


class Hermes(ToolFormat):
    """JSON objects between `<tool_call>` tags."""

    MARKERS: ClassVar[tuple[str, ...]] = (OPEN, CLOSE)
    PARSER = HermesParser

    @classmethod
    def matches(cls, source: str) -> bool:
        """Whether the template mentions the tag and the `arguments` key."""
        return OPEN in source and "arguments" in source and not any(mark in source for mark in _FOREIGN)

    def lark(
        self,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,
        *,
        thinking: bool = False,
        content: str | None = None,
    ) -> str | None:
        """As `ToolFormat.lark`."""
        if not tools and content is None:
            return None
        before, unfinished = self._before(thinking=thinking), self._unfinished(thinking=thinking)
        rules = [f"TEXT: {text_without(OPEN)}{self._not_before()}", f"ANY: {ANY_TEXT}", *self._rules()]
        if choice.mode == "none" or not tools:
            return "\n".join([f"start: {before}({content or 'TEXT'}){unfinished}", *rules, ""])
        allowed = callable_tools(tools, choice)
        objects = call_objects(allowed, "arguments")
        again = f" ({NEWLINE} call)*" if parallel and choice.name is None else ""
        rules += [
            f"call: {token(self.tokens, OPEN)} opened",
            f"opened: {NEWLINE} object {lark_text(_TAIL)} {token(self.tokens, CLOSE)}",
            f"object: {objects}",
        ]
        if choice.mode == "required":
            rules.insert(0, f"start: {before}call{again}")
        elif content is not None:
            rules.insert(0, f"start: {before}({content} | call{again}){unfinished}")
        elif OPEN in self.tokens:
            # A special token is not made of characters, so it ends the text.
            rules.insert(0, f"start: {before}TEXT (call{again})?{unfinished}")
        else:
            # Lazy: a complete opening tag ends the text.
            rules.insert(0, f"start: {before}(TEXT | head opened{again}){unfinished}")
            rules += [f"head[lazy]: HEAD {lark_text(OPEN)}", f"HEAD: {ANY_TEXT}{self._not_before()}"]
        return "\n".join([*rules, ""])

    def _before(self, *, thinking: bool) -> str:  # noqa: ARG002
        """Start of a rule: what precedes text and calls (reasoning)."""
        return ""

    def _unfinished(self, *, thinking: bool) -> str:  # noqa: ARG002
        """End of a rule: the alternative for output that ends inside the reasoning."""
        return ""

    def _rules(self) -> list[str]:
        """Additional rules for the reasoning."""
        return []

    def _not_before(self) -> str:
        """End of a terminal: excludes text that would start as reasoning."""
        return ""
