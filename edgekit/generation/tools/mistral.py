r"""The tool-call formats of Mistral's models: a list in older ones, a name and its arguments in newer ones.

    [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]
    [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}
    [TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris"}

The markers are special tokens. The templates require ids of nine letters and digits.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Sequence

from edgekit.generation.grammar.lark import lark_text
from edgekit.generation.tools.base import ToolFormat
from edgekit.generation.tools.lark import arguments, call_objects, callable_tools, text_without, token
from edgekit.generation.tools.parser import ToolParser
from edgekit.generation.types import Tool, ToolChoice

__all__ = ["Mistral"]

CALLS, ARGS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_LETTERS = string.ascii_letters + string.digits
_MAX_NAME = 200


class _Parser(ToolParser):
    """Parses a list of objects, or a name with arguments, after the token."""

    OPENINGS = (CALLS,)

    def _opened(self) -> bool:
        rest = self._buffer.lstrip()
        if not rest:
            return False
        if rest[0] == "[":
            self._advance(len(self._buffer) - len(rest) + 1)
            self._state = self._item
            return True
        return self._name(rest)

    def _item(self) -> bool:
        return self._skip_to("{", self._begin_object)

    def _name(self, rest: str) -> bool:
        """`name[ARGS]` or `name[CALL_ID]id[ARGS]`."""
        head, found, after = rest.partition(ARGS)
        if any(char in head for char in '{}"\n') or len(head) > _MAX_NAME + (0 if found else len(ARGS)):
            return self._reject()
        if not found:
            return False
        name, _, call_id = head.partition(ID)
        self._outer = name.strip(), call_id if re.fullmatch(r"[a-zA-Z0-9]{9}", call_id) else None
        self._advance(len(self._buffer) - len(after))
        self._state = self._item
        return True

    def _closing(self) -> bool:
        if self._outer is not None:
            self._outer = None
            self._state = self._gap
            return True
        rest = self._buffer.lstrip()
        if not rest:
            return False
        self._state = self._item if rest[0] == "," else self._gap
        if rest[0] in ",]":
            self._raw = self._buffer[: len(self._buffer) - len(rest) + 1] if rest[0] == "," else ""
            self._buffer = rest[1:]
        return True

    def _reject(self) -> bool:
        self._outer = None
        return super()._reject()


class Mistral(ToolFormat):
    """Calls after `[TOOL_CALLS]`."""

    MARKERS = (CALLS, ARGS, ID)
    PARSER = _Parser

    @classmethod
    def matches(cls, source: str) -> bool:
        """Whether the template mentions the token."""
        return CALLS in source

    def lark(
        self,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,
        *,
        thinking: bool = False,  # noqa: ARG002  no reasoning
        content: str | None = None,
    ) -> str | None:
        """As `ToolFormat.lark`."""
        if not tools and content is None:
            return None
        text = f"TEXT: {text_without(CALLS)}\n"
        if choice.mode == "none" or not tools:
            return f"start: {content or 'TEXT'}\n{text}"
        allowed = callable_tools(tools, choice)
        more = parallel and choice.name is None
        rules = self._named(allowed, more=more) if ARGS in self.source else self._listed(allowed, more=more)
        if choice.mode == "required":
            rules.insert(0, "start: calls")
        elif content is not None:
            rules.insert(0, f"start: {content} | calls")
        else:
            rules.insert(0, "start: TEXT calls?")
            rules.append(text)
        return "\n".join(rules) + "\n"

    def _listed(self, tools: Sequence[Tool], *, more: bool) -> list[str]:
        objects = call_objects(tools, "arguments")
        again = f" ({lark_text(', ')} call)*" if more else ""
        # A SentencePiece tokenizer puts a space after the token, Tekken does not.
        return [
            f"calls: {token(self.tokens, CALLS)} / ?\\x5b/ call{again} {lark_text(']')}",
            f"call: object {lark_text('}')}",
            f"object: {objects}",
        ]

    def _named(self, tools: Sequence[Tool], *, more: bool) -> list[str]:
        call_id = f" ({token(self.tokens, ID)} /[a-zA-Z0-9]{{9}}/)?" if ID in self.source else ""
        calls = " | ".join(
            f"{lark_text(tool.name)}{call_id} {token(self.tokens, ARGS)} {arguments(tool)}" for tool in tools
        )
        return [f"calls: call{'+' if more else ''}", f"call: {token(self.tokens, CALLS)} named", f"named: {calls}"]

    def new_id(self) -> str:
        """As `ToolFormat.new_id`."""
        return "".join(secrets.choice(_LETTERS) for _ in range(9))

    def prompt_id(self, call_id: str) -> str:
        """As `ToolFormat.prompt_id`."""
        if re.fullmatch(r"[a-zA-Z0-9]{9}", call_id):
            return call_id
        digest = hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()
        return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:9])
