"""The plain values in a schema: constants, names, bounds and counts. What cannot be written exactly is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable
from decimal import Decimal
from typing import Any

from edgekit.generation.grammar.errors import PartError

__all__ = ["check_literal", "check_text", "identity", "read_bound", "read_count", "type_name"]

# Doubles hold every integer up to here; llguidance reads numbers as doubles.
EXACT = 2**53
MAX_LITERAL_DEPTH = 16
# Larger bounds have no place in the decimal automaton.
MAX_BOUND = 10**15
_SHORT_ESCAPES = frozenset("\b\t\n\f\r")


def check_text(text: str, what: str) -> None:
    """Refuse text that JSON can write as a numbered escape only, which the grammar does not use.

    Raises:
        PartError: The text holds such a character.
    """
    for char in text:
        if (char < " " and char not in _SHORT_ESCAPES) or char == "\x7f":
            raise PartError(f"{what} holds the control character U+{ord(char):04X}, which is not enforced")
        if "\ud800" <= char <= "\udfff":
            raise PartError(f"{what} holds half of a surrogate pair", invalid=True)


def check_literal(value: object, depth: int = 0) -> int:
    """Check a constant and return how many values it holds, itself included.

    Raises:
        PartError: It cannot be written exactly, or is nested too deeply.
    """
    if depth > MAX_LITERAL_DEPTH:
        raise PartError("a constant is nested too deeply", complex_=True)
    if isinstance(value, str):
        check_text(value, "a constant")
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        if abs(value) > EXACT:
            raise PartError(f"{value} is beyond the integers that a double holds exactly")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise PartError("a constant is not a number", invalid=True)
        if not _is_exact(value):
            raise PartError(f"{value!r} has too many digits to be enforced")
    elif isinstance(value, list):
        return 1 + sum(check_literal(item, depth + 1) for item in value)
    elif isinstance(value, dict):
        for name in value:
            check_text(name, "a property's name")
        return 1 + sum(check_literal(item, depth + 1) for item in value.values())
    else:
        raise PartError(f"a constant is no JSON value but a {type(value).__name__}", invalid=True)
    return 1


def identity(value: Any) -> Hashable:
    """Return what is equal for values that JSON Schema holds equal: 1 and 1.0, but not 1 and true."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, int | float):
        return Decimal(value)
    if isinstance(value, list):
        return ("array", *(identity(item) for item in value))
    return ("object", frozenset((name, identity(item)) for name, item in value.items()))


def type_name(value: object) -> str:
    """Return JSON Schema's name for a value's type; a number without a fraction is an `integer`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if value == int(value) else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def read_count(value: object, most: int, name: str) -> int:
    """Read a length or a number of items.

    Raises:
        PartError: It is no count, or more than `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise PartError(f"`{name}` must be a whole number, not {_short(value)}", invalid=True)
    if value > most:
        raise PartError(f"`{name}` may be {most} at most, not {int(value)}", complex_=True)
    return int(value)


def read_bound(value: object, name: str) -> int | float:
    """Read the bound of a number.

    Raises:
        PartError: It is no number, or has too many digits to be enforced.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PartError(f"`{name}` must be a number, not {_short(value)}", invalid=True)
    if isinstance(value, float) and value != int(value):
        if abs(value) > MAX_BOUND or not _is_exact(value):
            raise PartError(f"`{name}` has too many digits to be enforced: {value!r}")
        return value
    return int(value)


def _is_exact(value: float) -> bool:
    """Whether llguidance reads the number as it is: its parser is exact for a short one that is not far from 1."""
    _, digits, exponent = Decimal(repr(value)).as_tuple()
    return int("".join(map(str, digits))) <= EXACT and isinstance(exponent, int) and -16 <= exponent <= 16


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"


def distinct(values: Iterable[Any]) -> list[Any]:
    """Return the values without repetitions, in order."""
    return list({identity(value): value for value in reversed(list(values))}.values())[::-1]
