r"""Calls as Hermes 2 Pro and Qwen2.5 write them, any number in a row.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Qwen2.5-Coder's published template shows the object in doubled braces by mistake, so models may write it so; and the
Coder models, whatever they are shown, tend to put the object in a Markdown fence (```json). The parser takes both. A
fence is no opening to the grammar, so a strict tool is not called by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from edgekit.generation.grammar.lark import lark_text
from edgekit.generation.request import Tool, ToolChoice
from edgekit.generation.tools.base import ToolFormat
from edgekit.generation.tools.lark import ANY_TEXT, NEWLINE, call_objects, callable_tools, text_without, token
from edgekit.generation.tools.parser import ToolParser

__all__ = ["Hermes", "HermesParser"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FENCE, FENCE_END = "```json\n", "```"
# Qwen3-Coder and GLM write XML between the same tags.
_OTHERS = ("<function=", "<arg_key>")
_TAIL = "}\n"


class HermesParser(ToolParser):
    """Finds the tags and what is between them."""

    OPENINGS = (OPEN, FENCE)

    def __init__(self, ids: Callable[[], str], tools: Sequence[Tool], *, stream: bool, parallel: bool) -> None:
        super().__init__(ids, tools, stream=stream, parallel=parallel)
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

    def _known(self, name: str) -> bool:
        return super()._known(name) and (name in self._lenient or not self._fenced)

    def _pass_on(self) -> None:
        if not self._fenced:
            super()._pass_on()

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
        """It mentions the tag and one of the object's keys."""
        return OPEN in source and "arguments" in source and not any(mark in source for mark in _OTHERS)

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
            # A special token has no characters, so text ends where it comes.
            rules.insert(0, f"start: {before}TEXT (call{again})?{unfinished}")
        else:
            # Lazy: the opening ends text as soon as it is complete.
            rules.insert(0, f"start: {before}(TEXT | head opened{again}){unfinished}")
            rules += [f"head[lazy]: HEAD {lark_text(OPEN)}", f"HEAD: {ANY_TEXT}{self._not_before()}"]
        return "\n".join([*rules, ""])

    def _before(self, *, thinking: bool) -> str:  # noqa: ARG002
        """What comes before text and calls: a rule's beginning."""
        return ""

    def _unfinished(self, *, thinking: bool) -> str:  # noqa: ARG002
        """An answer that ends within that: a rule's end."""
        return ""

    def _rules(self) -> list[str]:
        """Further rules that this needs."""
        return []

    def _not_before(self) -> str:
        """How text must not begin, because it would be that: the end of a terminal."""
        return ""
