"""Incremental JSON scanner: finds the end of an object and the spans of its values, character by character.

It accepts RFC 8259 and fails at the first character that does not conform.
"""

from __future__ import annotations

import json
import re

__all__ = ["ObjectScanner"]

_SPACE = " \t\n\r"
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_LITERALS = ("true", "false", "null")
_MAX_DEPTH = 64


class ObjectScanner:
    """Scans one JSON object.

    Attributes:
        size: Characters consumed.
        done: The object is complete.
        failed: The text is not a JSON object; the offending character was not consumed.
        values: For each top-level key, the start of its value and, once it is complete, its end.
    """

    def __init__(self) -> None:
        self.size = 0
        self.done = False
        self.failed = False
        self.values: dict[str, tuple[int, int | None]] = {}
        self._stack: list[str] = []
        self._expect = "object"
        # The string, number or literal being read, and whether a string is a key.
        self._atom: list[str] = []
        self._kind = ""
        self._is_key = False
        self._escape = ""
        self._key = ""

    def push(self, text: str) -> int:
        """Consume characters until the object is complete or one does not conform; return their count."""
        for taken, char in enumerate(text):
            if self.done or self.failed:
                return taken
            if not self._take(char):
                self.failed = True
                return taken
            self.size += 1
        return len(text)

    def _take(self, char: str) -> bool:
        if self._kind == "string":
            return self._in_string(char)
        if self._kind:
            if char not in ",]}" and char not in _SPACE:
                self._atom.append(char)
                return self._may_be_atom()
            if not self._is_atom():
                return False
            self._kind = ""
            self._value_ends()
        if char in _SPACE:
            return self._expect != "object"
        return self._between(char)

    def _between(self, char: str) -> bool:
        expect = self._expect
        if expect == "object":
            return char == "{" and self._open(char)
        if char == '"' and expect in {"key", "key or end"}:
            return self._begin("string", char, is_key=True)
        if char == ":" and expect == "colon":
            self._expect = "value"
            return True
        if char == "," and expect == "comma or end":
            self._expect = "key" if self._stack[-1] == "{" else "value"
            return True
        if char in "]}" and expect in {"comma or end", "key or end", "value or end"}:
            return self._close(char)
        if expect in {"value", "value or end"}:
            self._value_starts()
            if char in "{[":
                return self._open(char)
            if char == '"':
                return self._begin("string", char)
            return self._begin("number" if char in "-0123456789" else "literal", char) and self._may_be_atom()
        return False

    def _open(self, char: str) -> bool:
        self._stack.append(char)
        self._expect = "key or end" if char == "{" else "value or end"
        return len(self._stack) <= _MAX_DEPTH

    def _close(self, char: str) -> bool:
        if self._stack.pop() != ("{" if char == "}" else "["):
            return False
        if not self._stack:
            self.done = True
        self._value_ends(1)
        return True

    def _begin(self, kind: str, char: str, *, is_key: bool = False) -> bool:
        self._kind, self._atom, self._is_key = kind, [char], is_key
        return True

    def _in_string(self, char: str) -> bool:
        if self._is_key:
            self._atom.append(char)
        if self._escape:
            self._escape += char
            if self._escape[1] == "u":
                if len(self._escape) > 2 and char not in "0123456789abcdefABCDEF":
                    return False
                if len(self._escape) == 6:
                    self._escape = ""
                return True
            self._escape = ""
            return char in '"\\/bfnrt'
        if char == "\\":
            self._escape = char
        elif char == '"':
            self._kind = ""
            if not self._is_key:
                self._value_ends(1)
                return True
            self._expect = "colon"
            if len(self._stack) == 1:
                self._key = json.loads("".join(self._atom))
                # Parsers disagree about duplicate keys.
                return self._key not in self.values
        return char >= " "

    def _may_be_atom(self) -> bool:
        text = "".join(self._atom)
        if self._kind == "number":
            return len(text) <= 400 and re.fullmatch(r"[-+.eE0-9]+", text) is not None
        return any(literal.startswith(text) for literal in _LITERALS)

    def _is_atom(self) -> bool:
        text = "".join(self._atom)
        return _NUMBER.fullmatch(text) is not None if self._kind == "number" else text in _LITERALS

    def _value_starts(self) -> None:
        if len(self._stack) == 1:
            self.values[self._key] = (self.size, None)

    def _value_ends(self, length: int = 0) -> None:
        self._expect = "comma or end"
        if len(self._stack) == 1:
            self.values[self._key] = (self.values[self._key][0], self.size + length)
