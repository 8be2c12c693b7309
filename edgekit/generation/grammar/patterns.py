r"""Regular expressions of JSON schemas (ECMA 262), translated into those that llguidance compiles.

Engines disagree: what `\s`, `\w` and `.` mean, what `[a&&b]` is, where `^` may stand. So a pattern is read here, and
written anew in a form that can be read in one way only. Where engines differ about a class of characters, the narrower
reading is written: a text that is generated matches under ECMA 262 and under Python's `re`. What a finite automaton
cannot do (lookaround, back references), and what this does not know, is refused.
"""

from __future__ import annotations

import re

from edgekit.generation.grammar.errors import PartError

__all__ = ["full_match", "literal", "search"]

MAX_PATTERN_CHARS = 2000
# How large the pattern is once its counted repetitions are written out.
MAX_PATTERN_WEIGHT = 10_000
MAX_PATTERN_DEPTH = 24

_ANY = "(?s:.)*"
# Members of a class, each as the narrow reading and the wide one.
_SPACE = (r"\t\n\x0B\x0C\r ", r"\s\x{FEFF}\x1C-\x1F")
_WORD = ("0-9A-Za-z_", r"0-9A-Za-z_\p{Alphabetic}\p{M}\p{N}\p{Pc}")
_DIGIT = ("0-9", r"\p{N}")
_CLASSES = {"s": _SPACE, "w": _WORD, "d": _DIGIT}
_LINE_ENDS = r"\n\r\x{2028}\x{2029}"
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_CATEGORY = re.compile(r"\{([LMNPSZ][a-z]?)\}")
_COUNT = re.compile(r"\{(\d{1,6})(,(\d{0,6}))?\}")
_GROUP = re.compile(r"\((\?:|\?P?<[A-Za-z_][A-Za-z0-9_]*>)?(?!\?)")


def search(pattern: str) -> str:
    """Return a regular expression, anchored at both ends, of the texts that `pattern` is found in.

    Raises:
        PartError: The pattern is malformed, too complex, or asks for what cannot be enforced.
    """
    return f"^(?:{_Reader(pattern).read(whole=False)})$"


def full_match(pattern: str) -> str:
    """Return a regular expression, without anchors, of the texts that `pattern` matches from end to end.

    Raises:
        PartError: As `search`.
    """
    return _Reader(pattern).read(whole=True)


def literal(text: str) -> str:
    """Return a regular expression, without anchors, of this text alone."""
    return "".join(_literal(ord(char)) for char in text)


class _Reader:
    """Reads one pattern from left to right; what it returns is text of the translation and its weight."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN_CHARS:
            raise PartError(f"a pattern may have {MAX_PATTERN_CHARS} characters, not {len(pattern)}", complex_=True)
        self._text = pattern
        self._at = 0
        self._depth = 0

    def read(self, *, whole: bool) -> str:
        options = []
        while True:
            starts = whole or self._take("^")
            if whole:
                self._take("^")
            body, _ = self._sequence()
            ends = self._take("$") or whole
            options.append(f"{'' if starts else _ANY}{body}{'' if ends else _ANY}")
            if not self._take("|"):
                break
        if self._at < len(self._text):
            raise self._refuse("a stray `)`" if self._peek() == ")" else "an anchor elsewhere than at the ends")
        return options[0] if len(options) == 1 else "|".join(f"(?:{option})" for option in options)

    def _alternatives(self) -> tuple[str, int]:
        options, weight = [], 0
        while True:
            body, size = self._sequence()
            options.append(body)
            weight += size
            if not self._take("|"):
                return "|".join(options), weight

    def _sequence(self) -> tuple[str, int]:
        out, weight = [], 0
        while (char := self._peek()) and char not in "|)^$":
            atom, size = self._atom(char)
            repeat, times = self._repeat()
            out.append(atom + repeat)
            weight += size * times
            if weight > MAX_PATTERN_WEIGHT:
                raise PartError("the pattern's counted repetitions make it too large", complex_=True)
        return "".join(out), weight

    def _atom(self, char: str) -> tuple[str, int]:
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
            raise self._refuse(f"a `{char}` that repeats nothing")
        return _literal(ord(char)), 1

    def _group(self) -> tuple[str, int]:
        match = _GROUP.match(self._text, self._at)
        if not match:
            raise self._refuse("lookaround or flags")
        self._at = match.end()
        self._depth += 1
        if self._depth > MAX_PATTERN_DEPTH:
            raise PartError("the pattern's groups are nested too deeply", complex_=True)
        body, weight = self._alternatives()
        self._depth -= 1
        if not self._take(")"):
            raise self._refuse("an anchor in a group" if self._peek() in {"^", "$"} else "an open group")
        return f"(?:{body})", max(weight, 1)

    def _repeat(self) -> tuple[str, int]:
        char = self._peek()
        if char == "{":
            match = _COUNT.match(self._text, self._at)
            if not match:
                raise self._refuse("a `{` that is no repetition (write it `\\{`)")
            self._at = match.end()
            low = int(match[1])
            high = int(match[3]) if match[3] else None if match[2] else low
            if high is not None and high < low:
                raise self._refuse("a repetition that ends before it begins")
            out = f"{{{low},{'' if high is None else high}}}"
            times = max(low, high or 0, 1)
        elif char and char in "*+?":
            self._at += 1
            out, times = char, 1
        else:
            return "", 1
        # A reluctant repetition matches the same texts.
        self._take("?")
        if self._peek() and self._peek() in "*+{":
            raise self._refuse("two repetitions in a row")
        return out, times

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
            raise self._refuse("an empty class")
        while not self._take("]"):
            if not self._peek():
                raise self._refuse("an open class")
            first = self._class_member(negated=negated)
            if isinstance(first, str):
                out.append(first)
                continue
            following = self._text[self._at : self._at + 2]
            if not following.startswith("-") or following in {"-", "-]"}:
                out.append(_literal(first))
                continue
            self._at += 1
            last = self._class_member(negated=negated)
            if isinstance(last, str) or last < first:
                raise self._refuse("a range without order")
            out.append(f"{_literal(first)}-{_literal(last)}")
        return f"[{'^' if negated else ''}{''.join(out)}]"

    def _class_member(self, *, negated: bool) -> int | str:
        """A code point, or a set of them as text."""
        char = self._peek()
        self._at += 1
        if char != "\\":
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
        return self._code_point()

    def _category(self) -> str:
        kind = self._peek()
        match = _CATEGORY.match(self._text, self._at + 1)
        if not match:
            raise self._refuse(f"`\\{kind}` with something else than a general category, such as `\\p{{Lu}}`")
        self._at = match.end()
        return f"\\{kind}{{{match[1]}}}"

    def _code_point(self) -> int:
        """What stands after a backslash, if it is one character."""
        kind = self._peek()
        self._at += 1
        if kind in _CONTROLS:
            return _CONTROLS[kind]
        if kind and kind in "xu":
            match = re.compile(r"[0-9a-fA-F]{2}" if kind == "x" else r"[0-9a-fA-F]{4}|\{[0-9a-fA-F]{1,6}\}").match(
                self._text, self._at
            )
            value = int(match[0].strip("{}"), 16) if match else -1
            if match and value <= 0x10FFFF and not 0xD800 <= value < 0xE000:
                self._at = match.end()
                return value
        elif kind and not kind.isalnum():
            return ord(kind)
        raise self._refuse(f"`\\{kind}`")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, char: str) -> bool:
        if self._peek() != char:
            return False
        self._at += 1
        return True

    def _refuse(self, what: str) -> PartError:
        return PartError(f"the pattern has {what} (near character {min(self._at, len(self._text))})")


def _member(kind: str, *, negated: bool) -> str:
    r"""Write `\s` and its like as members of a class, so that the class as a whole means the narrower thing."""
    narrow, wide = _CLASSES[kind.lower()]
    if kind.islower():
        return wide if negated else narrow
    return f"[^{narrow}]" if negated else f"[^{wide}]"


def _literal(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:X}}}"
