r"""Translates regular expressions of JSON schemas (ECMA 262) to llguidance's syntax.

Engines disagree about the meaning of `\s`, `\w`, `.` and `[a&&b]`, and about the positions of `^`. So a pattern is
parsed here and rewritten in an unambiguous form. Where engines differ about a character class, the narrower meaning is
used: generated text matches under ECMA 262 and under Python's `re`. Features beyond finite automata (back references)
and unknown syntax are rejected, and so is lookaround, except `(?=…)` and simple forms of `(?!…)` right after the first
`^`: those become further patterns for the same string.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.generation.grammar.errors import PartError

__all__ = ["full_match", "literal", "search", "searches"]

MAX_PATTERN_CHARS = 2000
# Size of the pattern with counted repetitions expanded.
MAX_PATTERN_SIZE = 10_000
MAX_PATTERN_DEPTH = 24
MAX_CONDITIONS = 8

_ANY = "(?s:.)*"
# Members of a character class: narrow and wide meaning.
_SPACE = (r"\t\n\x0B\x0C\r ", r"\s\x{FEFF}\x1C-\x1F")
_WORD = ("0-9A-Za-z_", r"0-9A-Za-z_\p{Alphabetic}\p{M}\p{N}\p{Pc}")
_DIGIT = ("0-9", r"\p{N}")
_CLASSES = {"s": _SPACE, "w": _WORD, "d": _DIGIT}
_LINE_ENDS = r"\n\r\x{2028}\x{2029}"
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_CATEGORY = re.compile(r"\{([CLMNPSZ][a-z]?)\}")
_COUNT = re.compile(r"\{(\d{1,6})(,(\d{0,6}))?\}")
# The end in a pattern for engines in which `$` might be the end of a line.
_END = r"(?![\s\S])"
_SURROGATES = range(0xD800, 0xE000)
_GROUP = re.compile(r"\((\?:|\?P?<[A-Za-z_][A-Za-z0-9_]*>)?(?!\?)")


def search(pattern: str) -> str:
    """Return a regular expression, anchored at both ends, for the strings in which `pattern` is found.

    Raises:
        PartError: The pattern is malformed, too complex, or cannot be enforced.
    """
    first, *further = searches(pattern)
    if further:
        raise PartError("a pattern with lookaround is not enforced here")
    return first


def searches(pattern: str) -> list[str]:
    """Return regular expressions, anchored at both ends; the strings that match all are those that `search` means.

    Raises:
        PartError: As `search`.
    """
    translator = _Translator(pattern)
    found = [translator.read(full=False), *translator.conditions]
    return [f"^(?:{body})$" for body in found]


def full_match(pattern: str) -> str:
    """Return a regular expression, without anchors, for the strings that `pattern` matches completely.

    Raises:
        PartError: As `search`.
    """
    return _Translator(pattern).read(full=True)


def literal(text: str) -> str:
    """Return a regular expression, without anchors, that matches exactly this string."""
    return "".join(_literal(ord(char)) for char in text)


@dataclass(frozen=True, slots=True)
class _Part:
    """An atom and how often it may occur; None has no maximum."""

    atom: str | _Anchored
    low: int
    high: int | None
    source: str = ""

    def shortest(self) -> _Part:
        """As few as possible of it."""
        return _Part(self.atom, self.low, self.low)

    def __str__(self) -> str:
        if self.low == self.high == 1:
            return str(self.atom)
        if self.high is None and self.low <= 1:
            return f"{self.atom}{'*+'[self.low]}"
        if (self.low, self.high) == (0, 1):
            return f"{self.atom}?"
        return f"{self.atom}{{{self.low},{'' if self.high is None else self.high}}}"


@dataclass(frozen=True, slots=True)
class _Option:
    """One of several alternatives, and whether it has anchors at its ends."""

    starts: bool
    parts: list[_Part]
    ends: bool

    def text(self, *, before: bool, after: bool) -> str:
        """Its translation, where anything may come before it or after it, unless an anchor forbids that."""
        before, after = before and not self.starts, after and not self.ends
        parts = list(self.parts)
        out = []
        for at, part in enumerate(parts):
            first, last = at == 0, at == len(parts) - 1
            if isinstance(part.atom, _Anchored):
                out.append(part.atom.text(before=before and first, after=after and last))
                continue
            # Where anything may precede or follow, further repetitions change nothing: `.*a{1,9}` is `.*a`.
            short = (before and first) or (after and last)
            out += [_ANY if before and first else "", str(part.shortest() if short else part)]
            out.append(_ANY if after and last else "")
        return "".join(out) if parts else _ANY * (before + after)


@dataclass(frozen=True, slots=True)
class _Anchored:
    """A group with anchors, which may stand where they mean the ends of the whole string."""

    options: list[_Option]

    def text(self, *, before: bool, after: bool) -> str:
        """As `_Option.text`."""
        return f"(?:{'|'.join(option.text(before=before, after=after) for option in self.options)})"

    @property
    def starts(self) -> bool:
        """Whether an anchor for the start is in it."""
        return any(option.starts or (_inner(option, 0) and _inner(option, 0).starts) for option in self.options)

    @property
    def ends(self) -> bool:
        """Whether an anchor for the end is in it."""
        return any(option.ends or (_inner(option, -1) and _inner(option, -1).ends) for option in self.options)


def _inner(option: _Option, at: int) -> Any:
    return option.parts[at].atom if option.parts and isinstance(option.parts[at].atom, _Anchored) else None


class _Translator:
    """Recursive-descent parser of one pattern; its methods return the translation and its size.

    Attributes:
        conditions: Further translations that the string must match, from lookaround.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN_CHARS:
            raise PartError(
                f"a pattern may have at most {MAX_PATTERN_CHARS} characters, not {len(pattern)}", complex_=True
            )
        self.conditions: list[str] = []
        self._text = pattern
        self._at = 0
        self._depth = 0

    def read(self, *, full: bool) -> str:
        if not full and self._text.startswith("^(?"):
            self._at = 1
            while self._text.startswith(("(?=", "(?!"), self._at) and not self._text.startswith(_END, self._at):
                self._look_ahead()
                if len(self.conditions) > MAX_CONDITIONS:
                    raise PartError("the pattern has too much lookaround", complex_=True)
            conditional = bool(self.conditions)
            first, _ = self._option(starts=True)
        else:
            conditional = False
            first, _ = self._option()
        options = [first]
        if self._take("|"):
            if conditional:
                raise self._error("lookaround in one of several alternatives")
            options += self._alternatives()[0]
        if self._at < len(self._text):
            raise self._error("an unmatched `)`" if self._peek() == ")" else "an anchor that is not at an end")
        bodies = [option.text(before=not full, after=not full) for option in options]
        return bodies[0] if len(bodies) == 1 else "|".join(f"(?:{body})" for body in bodies)

    def _look_ahead(self) -> None:
        """Parse `(?=…)` or `(?!…)` at the start of the string."""
        positive = self._text[self._at + 2] == "="
        self._at += 3
        options, _ = self._alternatives()
        if not self._take(")"):
            raise self._error("an unclosed group")
        if positive:
            self.conditions.append("|".join(option.text(before=False, after=True) for option in options))
        else:
            self.conditions += [self._otherwise(option) for option in options]

    def _otherwise(self, option: _Option) -> str:
        """Strings that do not begin with a match of an option, or only some of them."""
        parts = option.parts
        counts = [(part.low, part.high) for part in parts]
        if not option.ends and all(low == high for low, high in counts) and 0 < sum(low for low, _ in counts) < 100:
            # One character after the other: another one, or this one and then the same for the rest.
            out = ""
            for part in reversed(parts):
                for _ in range(part.low):
                    out = f"(?:{self._opposite(part)}{_ANY}{f'|{part.atom}{out}' if out else ''})?"
            return out
        if option.ends and counts in ([(0, None)], [(1, None)]):
            # Python's `$` matches before a line feed at the end, too.
            other = f"{_ANY}[{self._opposite(parts[0])}&&[^\\n]]{_ANY}"
            return f"(?:{other})?" if counts[0][0] else other
        if option.ends and counts == [(0, None), (1, 1)] and parts[0].source == ".":
            return f"(?:{_ANY}[{self._opposite(parts[1])}&&[^\\n]])?"
        if not option.ends and len(parts) > 1 and counts[0] == (0, None) and parts[0].source == ".":
            return self._never(parts[1:])
        raise self._error("lookaround whose opposite is not simple")

    def _never(self, parts: Sequence[_Part]) -> str:
        """Strings in which a character is never repeated so often; `.*` ends with a line, and this does not."""
        times = sum(part.low for part in parts)
        alike = len({part.source for part in parts}) == 1 and all(part.low == part.high for part in parts)
        if not alike or not 0 < times < 100:
            raise self._error("lookaround whose opposite is not simple")
        fewer = f"(?:{parts[0].atom}){{0,{times - 1}}}" if times > 1 else ""
        return f"(?:{fewer}{self._opposite(parts[0])})*{fewer}"

    def _opposite(self, part: _Part) -> str:
        """A class of the characters that certainly are none of an atom's."""
        source = part.source
        if source.startswith("[^"):
            source = f"[{source[2:]}"
        elif source.startswith("["):
            source = f"[^{source[1:]}"
        elif len(source) == 2 and source[1] in "sSwWdD":
            source = f"\\{source[1].swapcase()}"
        elif source == "." or source.startswith("("):
            raise self._error("lookaround whose opposite is not simple")
        else:
            source = f"[^{source}]"
        return _Translator(source).single()

    def single(self) -> str:
        """Return the translation of a pattern that is one atom."""
        return str(self._atom(self._peek())[0])

    def _alternatives(self) -> tuple[list[_Option], int]:
        options, total = [], 0
        while True:
            option, size = self._option()
            options.append(option)
            total += size
            if not self._take("|"):
                return options, total

    def _option(self, *, starts: bool = False) -> tuple[_Option, int]:
        starts = self._take("^") or starts
        parts, size = self._sequence()
        ends = self._take("$") or self._take(_END)
        return _Option(starts, parts, ends), size

    def _sequence(self) -> tuple[list[_Part], int]:
        out: list[_Part] = []
        total = 0
        while (char := self._peek()) and char not in "|)^$" and not self._text.startswith(_END, self._at):
            start = self._at
            atom, size = self._atom(char)
            source = self._text[start : self._at]
            low, high = self._repeat()
            if isinstance(atom, _Anchored) and (low, high) != (1, 1):
                raise self._error("an anchor in a repeated group")
            out.append(_Part(atom, low, high, source))
            total += size * max(low, high or 0, 1)
            if total > MAX_PATTERN_SIZE:
                raise PartError("the pattern is too large with its counted repetitions expanded", complex_=True)
        inner = [(at, part.atom) for at, part in enumerate(out) if isinstance(part.atom, _Anchored)]
        if any((group.starts and at > 0) or (group.ends and at < len(out) - 1) for at, group in inner):
            raise self._error("an anchor that is not at an end")
        return out, total

    def _atom(self, char: str) -> tuple[str | _Anchored, int]:
        if char == "(":
            return self._group()
        if char == "[":
            return self._class(), 1
        self._at += 1
        if char == ".":
            return f"[^{_LINE_ENDS}]", 1
        if char == "\\":
            return self._escape()
        if char in "*+?{":
            raise self._error(f"a `{char}` with nothing to repeat")
        return _literal(ord(char)), 1

    def _group(self) -> tuple[str | _Anchored, int]:
        match = _GROUP.match(self._text, self._at)
        if not match:
            raise self._error("lookaround or flags")
        self._at = match.end()
        self._depth += 1
        if self._depth > MAX_PATTERN_DEPTH:
            raise PartError("the groups of the pattern are nested too deeply", complex_=True)
        options, total = self._alternatives()
        self._depth -= 1
        if not self._take(")"):
            raise self._error("an anchor that is not at an end" if self._peek() in {"^", "$"} else "an unclosed group")
        group = _Anchored(options)
        if group.starts or group.ends:
            return group, max(total, 1)
        return group.text(before=False, after=False), max(total, 1)

    def _repeat(self) -> tuple[int, int | None]:
        """How often an atom may occur; None has no maximum."""
        char = self._peek()
        low, high = 1, None
        if char == "{":
            match = _COUNT.match(self._text, self._at)
            if not match:
                raise self._error("a `{` that is not a repetition (escape it as `\\{`)")
            self._at = match.end()
            low = int(match[1])
            high = int(match[3]) if match[3] else None if match[2] else low
            if high is not None and high < low:
                raise self._error("a repetition whose maximum is below its minimum")
        elif char and char in "*+?":
            self._at += 1
            low, high = (1 if char == "+" else 0), (1 if char == "?" else None)
        else:
            return 1, 1
        # A lazy repetition matches the same strings.
        self._take("?")
        if self._peek() and self._peek() in "*+{":
            raise self._error("two repetitions in a row")
        return low, high

    def _escape(self) -> tuple[str, int]:
        kind = self._peek()
        if kind.lower() in _CLASSES:
            self._at += 1
            return f"[{_member(kind, negated=False)}]", 1
        if kind in {"p", "P"}:
            return f"[{self._category()}]", 1
        return _literal(self._code_point()), 1

    def _class(self) -> str:
        self._at += 1
        negated = self._take("^")
        out = []
        if self._peek() == "]":
            raise self._error("an empty class")
        while not self._take("]"):
            if not self._peek():
                raise self._error("an unclosed class")
            first = self._class_member(negated=negated)
            if isinstance(first, str):
                out.append(first)
                continue
            following = self._text[self._at : self._at + 2]
            if not following.startswith("-") or following in {"-", "-]"}:
                out += [_literal(first)] if first not in _SURROGATES else []
                continue
            self._at += 1
            last = self._class_member(negated=negated)
            if isinstance(last, str) or last < first:
                raise self._error("a range out of order")
            # Characters are no halves of a pair; where engines count halves, a negated class would have others.
            low, high = (
                (first if first < 0xD800 else max(first, 0xE000)),
                (last if last > 0xDFFF else min(last, 0xD7FF)),
            )
            out += [f"{_literal(low)}-{_literal(high)}"] if low <= high else []
        if not out:
            raise self._error("an empty class")
        return f"[{'^' if negated else ''}{''.join(out)}]"

    def _class_member(self, *, negated: bool) -> int | str:
        """A code point, or a translated set of them."""
        char = self._peek()
        self._at += 1
        if char != "\\":
            if negated and char and ord(char) in _SURROGATES:
                raise self._error("half of a surrogate pair")
            return ord(char) if char else -1
        kind = self._peek()
        if kind.lower() in _CLASSES:
            self._at += 1
            return _member(kind, negated=negated)
        if kind in {"p", "P"}:
            return self._category()
        if kind == "b":
            self._at += 1
            return 8
        return self._code_point(halves=not negated)

    def _category(self) -> str:
        kind = self._peek()
        match = _CATEGORY.match(self._text, self._at + 1)
        if not match:
            raise self._error(f"`\\{kind}` without a general category, such as `\\p{{Lu}}`")
        self._at = match.end()
        return f"\\{kind}{{{match[1]}}}"

    def _code_point(self, *, halves: bool = False) -> int:
        """Parse the rest of an escape for a single character, or half of a surrogate pair where that is allowed."""
        kind = self._peek()
        self._at += 1
        if kind in _CONTROLS:
            return _CONTROLS[kind]
        if kind and kind in "xu":
            match = re.compile(r"[0-9a-fA-F]{2}" if kind == "x" else r"[0-9a-fA-F]{4}|\{[0-9a-fA-F]{1,6}\}").match(
                self._text, self._at
            )
            value = int(match[0].strip("{}"), 16) if match else -1
            if match and value <= 0x10FFFF and (value not in _SURROGATES or halves):
                self._at = match.end()
                return value
        elif kind and not kind.isalnum():
            return ord(kind)
        raise self._error(f"`\\{kind}`")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _error(self, problem: str) -> PartError:
        return PartError(f"the pattern has {problem} (near character {min(self._at, len(self._text))})")


def _member(kind: str, *, negated: bool) -> str:
    r"""Translate `\s` and similar escapes to class members such that the whole class has its narrower meaning."""
    narrow, wide = _CLASSES[kind.lower()]
    if kind.islower():
        return wide if negated else narrow
    return f"[^{narrow}]" if negated else f"[^{wide}]"


def _literal(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:X}}}"
