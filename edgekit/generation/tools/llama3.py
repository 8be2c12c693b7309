r"""The tool-call format of Llama 3.1 and 3.2: a JSON object in place of an answer, sometimes after a special token.

    {"name": "get_weather", "parameters": {"city": "Paris"}}
    <|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}

The templates accept only one call per turn, so the grammar allows only one; the parser accepts several, separated by
`;`. Python code after the token is text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.generation.grammar.lark import lark_text
from edgekit.generation.tools.base import ToolFormat
from edgekit.generation.tools.lark import call_objects, callable_tools, pattern, text_without, token
from edgekit.generation.tools.parser import ToolParser
from edgekit.generation.types import Tool, ToolChoice

__all__ = ["Llama3"]

TAG = "<|python_tag|>"


class _Parser(ToolParser):
    """Looks for an object at the start and for the token anywhere."""

    OPENINGS = (TAG,)
    ARGUMENTS = ("parameters", "arguments")

    def __init__(
        self, ids: Callable[[], str], tools: Sequence[Tool], *, stream: bool, required: bool, parallel: bool
    ) -> None:
        super().__init__(ids, tools, stream=stream, required=required, parallel=parallel)
        self._state = self._begin if tools else self._text
        self._quoted = frozenset(f'"{tool.name}"' for tool in tools)

    def _begin(self) -> bool:
        rest = self._buffer.lstrip()
        if not rest:
            return False
        if rest[0] == "{":
            self._advance(len(self._buffer) - len(rest))
            self._begin_object()
        elif rest.startswith(TAG):
            self._advance(len(self._buffer) - len(rest) + len(TAG))
            self._state = self._opened
        elif TAG.startswith(rest):
            return False
        else:
            self._state = self._text
        return True

    def _begun(self) -> bool:
        if self._raw.lstrip().startswith(TAG):
            return True
        # Without the token it is a call once it names a tool, and other JSON is text.
        start, stop = self._scanner.values.get("name", (0, None))
        return bool(self._raw) and stop is not None and self._object[start:stop] in self._quoted

    def _gap(self) -> bool:
        rest = self._buffer.lstrip().removeprefix(";").lstrip()
        if rest.startswith("{"):
            self._advance(len(self._buffer) - len(rest))
            self._begin_object()
            return True
        return super()._gap() if rest else False


class Llama3(ToolFormat):
    """A JSON object with `name` and `parameters`."""

    MARKERS = (TAG,)
    PARSER = _Parser

    @classmethod
    def matches(cls, source: str) -> bool:
        """Whether the template has Llama 3's headers, `parameters` and `tool_calls`."""
        return "<|start_header_id|>" in source and "parameters" in source and "tool_calls" in source

    def lark(
        self,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,  # noqa: ARG002  always a single call
        *,
        thinking: bool = False,  # noqa: ARG002  no reasoning
        content: str | None = None,
    ) -> str | None:
        """As `ToolFormat.lark`."""
        if not tools and content is None:
            return None
        # Text that starts like a call to one of the tools would be parsed as one; other JSON is text.
        names = "|".join(pattern(tool.name) for tool in tools)
        free = text_without(TAG)
        if names:
            free += rf" & ~/\s*\x7b\s*\"name\"\s*:\s*\"({names})\"(?s:.*)/"
        if choice.mode == "none" or not tools:
            return f"start: {content or 'TEXT'}\nTEXT: {free}\n"
        objects = call_objects(callable_tools(tools, choice), "parameters")
        tag = token(self.tokens, TAG) if TAG in self.tokens else ""
        rules = [f"call: object {lark_text('}')}", f"object: {objects}", f"TEXT: {free}"]
        if choice.mode == "required":
            rules.insert(0, f"start: {f'{tag}? ' if tag else ''}call")
        elif content is None:
            rules.insert(0, f"start: TEXT | {f'{tag}? ' if tag else ''}call")
        else:
            # Content may be JSON too; only the token distinguishes a call from it.
            rules.insert(0, f"start: {content}{f' | {tag} call' if tag else ''}")
        return "\n".join([*rules, ""])
