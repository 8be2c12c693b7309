"""Translates llama.cpp's GBNF grammars to Lark.

llguidance's own converter makes terminals of rules, whose lexer takes the longest match, so that `[a-z]* "b"` matches
nothing. Here a grammar without recursion becomes one regular expression; in others, every lexeme is one character, so
that the parser sees what GBNF's sees. Source of the format: llama.cpp's grammars/README.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.patterns import literal

__all__ = ["gbnf_to_lark", "is_gbnf"]

MAX_TIMES = 10_000
MAX_NESTING = 50
# A longer regular expression is written as rules.
MAX_REGEX_CHARS = 20_000

_FIRST_RULE = re.compile(r"(?:\s|#[^\n]*(?:\n|$)|//[^\n]*(?:\n|$))*[A-Za-z0-9_-]+\s*::=")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TOKEN = re.compile(r"<[^<>\s]+>")
_COUNT = re.compile(r"\{\s*(\d{1,20})\s*(,\s*(\d{0,20})\s*)?\}")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "^": "^", "-": "-"}
_HEX = {"x": 2, "u": 4, "U": 8}
_ANY = "(?s:.)"


def is_gbnf(text: str) -> bool:
    """Whether a grammar is GBNF: its first rule has `::=`, which no rule of Lark's has."""
    return _FIRST_RULE.match(text) is not None


def gbnf_to_lark(text: str) -> str:
    """Return a GBNF grammar in Lark syntax.

    Raises:
        PartError: It is malformed; the message has line and column.
    """
    rules = _Parser(text).read()
    names = {name: "start" if name == "root" else f"g{at}" for at, name in enumerate(rules)}
    regex = _Regex(rules).of("root")
    if regex is not None:
        return f"start: /{regex}/\n"
    return "".join(f"{names[name]}: {_lark(node, names)}\n" for name, node in rules.items())


@dataclass(frozen=True, slots=True)
class _Chars:
    """One character, as a regular expression."""

    regex: str


@dataclass(frozen=True, slots=True)
class _Name:
    """A rule, or a token in `<…>`."""

    name: str
    at: int


@dataclass(frozen=True, slots=True)
class _Repeat:
    """A node, from `low` to `high` times; None has no maximum."""

    node: _Node
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class _Options:
    """Alternatives, each a sequence."""

    options: tuple[tuple[_Node, ...], ...]


_Node = _Chars | _Name | _Repeat | _Options


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def read(self) -> dict[str, _Node]:
        rules: dict[str, _Node] = {}
        used: list[_Name] = []
        self._names = used
        self._space(lines=True)
        while self._at < len(self._text):
            start = self._at
            name = self._match(_NAME, "a rule's name")[0]
            self._space()
            if not self._take("::="):
                raise self._error("expected `::=`")
            if name in rules:
                raise self._error(f"the rule `{name}` is defined twice", start)
            self._space(lines=True)
            rules[name] = self._options(inside=False)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                raise self._error("expected the end of the rule")
            self._space(lines=True)
        for reference in used:
            if reference.name not in rules:
                raise self._error(f"the rule `{reference.name}` is not defined", reference.at)
        if "root" not in rules:
            raise PartError("the grammar is not GBNF: it has no rule `root`", invalid=True)
        return rules

    def _options(self, *, inside: bool) -> _Options:
        options = [self._sequence(inside)]
        while self._take("|"):
            self._space(lines=True)
            options.append(self._sequence(inside))
        return _Options(tuple(options))

    def _sequence(self, inside: bool) -> tuple[_Node, ...]:
        nodes: list[_Node] = []
        while (char := self._peek()) and char not in "|)" and (inside or char not in "\r\n"):
            if char == '"':
                first = len(nodes)
                nodes += [_Chars(literal(letter)) for letter in self._literal()]
                self._space(lines=inside)
                # A repetition after a literal repeats all of it.
                if self._peek() and self._peek() in "*+?{":
                    nodes[first:] = [self._repeated(_Options((tuple(nodes[first:]),)))]
            else:
                node = self._atom(char)
                self._space(lines=inside)
                nodes.append(self._repeated(node))
            self._space(lines=inside)
        return tuple(nodes)

    def _atom(self, char: str) -> _Node:
        at = self._at
        if char == "[":
            return _Chars(self._class())
        if char == "(":
            return self._group()
        if char == "<":
            return _Name(self._match(_TOKEN, "a token")[0], at)
        if self._take("."):
            return _Chars(_ANY)
        if _NAME.match(char):
            self._names.append(_Name(self._match(_NAME, "a name")[0], at))
            return self._names[-1]
        raise self._error(f"unexpected `{char}`")

    def _group(self) -> _Node:
        self._at += 1
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise PartError("the groups of the grammar are nested too deeply", complex_=True)
        self._space(lines=True)
        node = self._options(inside=True)
        if not self._take(")"):
            raise self._error("expected `)`")
        self._depth -= 1
        return node

    def _repeated(self, node: _Node) -> _Node:
        while (char := self._peek()) and char in "*+?{":
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(char, (0, 0))
            if char == "{":
                start = self._at
                found = self._match(_COUNT, "`{m}`, `{m,}` or `{m,n}`")
                low = int(found[1])
                high = int(found[3]) if found[3] else None if found[2] else low
                if high is not None and high < low:
                    raise self._error("the maximum of a repetition is below its minimum", start)
                if max(low, high or 0) > MAX_TIMES:
                    raise PartError(f"a repetition may have at most {MAX_TIMES} times", complex_=True)
            else:
                self._at += 1
            node = _Repeat(node, low, high)
            self._space()
        return node

    def _literal(self) -> str:
        start = self._at
        self._at += 1
        out = []
        while not self._take('"'):
            if not self._peek() or self._peek() == "\n":
                raise self._error("this literal has no end", start)
            out.append(self._char())
        return "".join(out)

    def _class(self) -> str:
        start = self._at
        self._at += 1
        negated = self._take("^")
        parts = []
        while not self._take("]"):
            if not self._peek() or self._peek() == "\n":
                raise self._error("this class has no end", start)
            first = last = self._char()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in {"]", ""}:
                self._at += 1
                last = self._char()
                if last < first:
                    raise self._error("a range is out of order", start)
            parts.append(literal(first) if first == last else f"{literal(first)}-{literal(last)}")
        if not parts:
            raise self._error("this class is empty", start)
        return f"[{'^' if negated else ''}{''.join(parts)}]"

    def _char(self) -> str:
        char = self._text[self._at]
        self._at += 1
        if char != "\\":
            return self._checked(char)
        kind = self._peek()
        self._at += 1
        if kind in _ESCAPES and kind:
            return _ESCAPES[kind]
        if kind in _HEX and kind:
            digits = self._text[self._at : self._at + _HEX[kind]]
            if re.fullmatch(rf"[0-9A-Fa-f]{{{_HEX[kind]}}}", digits) and int(digits, 16) <= 0x10FFFF:
                self._at += len(digits)
                return self._checked(chr(int(digits, 16)))
        raise self._error(f"unknown escape `\\{kind}`", self._at - 2)

    def _checked(self, char: str) -> str:
        if "\ud800" <= char <= "\udfff":
            raise self._error("half of a surrogate pair", self._at - 1)
        return char

    def _space(self, *, lines: bool = False) -> None:
        pattern = r"(?:[ \t\r\n]|#[^\n]*)*" if lines else r"(?:[ \t]|#[^\n]*)*"
        found = re.compile(pattern).match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if not found:
            raise self._error(f"expected {what}")
        self._at = found.end()
        return found

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _error(self, problem: str, at: int | None = None) -> PartError:
        at = min(self._at if at is None else at, len(self._text))
        line = self._text.count("\n", 0, at) + 1
        column = at - self._text.rfind("\n", 0, at)
        return PartError(f"the grammar is not GBNF: {problem} (line {line}, column {column})", invalid=True)


class _Regex:
    """Regular expressions of rules without recursion; None for the others, and for long ones."""

    def __init__(self, rules: dict[str, _Node]) -> None:
        self._rules = rules
        self._done: dict[str, str | None] = {}
        self._open: set[str] = set()

    def of(self, name: str) -> str | None:
        if name in self._open or name not in self._rules or len(self._open) > MAX_NESTING:
            return None
        if name not in self._done:
            self._open.add(name)
            self._done[name] = self._write(self._rules[name])
            self._open.remove(name)
        return self._done[name]

    def _write(self, node: _Node) -> str | None:
        if isinstance(node, _Chars):
            return node.regex
        if isinstance(node, _Name):
            return self.of(node.name)
        if isinstance(node, _Repeat):
            inside = self._write(node.node)
            return inside if inside is None else f"(?:{inside}){_times(node)}"
        options = []
        for option in node.options:
            parts = [self._write(part) for part in option]
            if None in parts:
                return None
            options.append("".join(part or "" for part in parts))
        regex = f"(?:{'|'.join(options)})"
        return regex if len(regex) <= MAX_REGEX_CHARS else None


def _lark(node: _Node, names: dict[str, str]) -> str:
    if isinstance(node, _Chars):
        return f"/{node.regex}/"
    if isinstance(node, _Name):
        return names.get(node.name, node.name)
    if isinstance(node, _Repeat):
        return f"({_lark(node.node, names)}){_times(node)}"
    options = [" ".join(_lark(part, names) for part in option) or '""' for option in node.options]
    return f"({' | '.join(options)})"


def _times(node: _Repeat) -> str:
    return f"{{{node.low},{'' if node.high is None else node.high}}}"
