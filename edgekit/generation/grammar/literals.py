"""Checks the literal values in a schema: constants, names, bounds and counts. Inexact values are rejected."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable
from decimal import Decimal
from typing import Any

from edgekit.generation.grammar.errors import PartError

__all__ = [
    "check_literal",
    "check_text",
    "distinct",
    "identity",
    "numeric_escape",
    "read_bound",
    "read_count",
    "type_name",
]

# Doubles represent every integer up to here; llguidance reads numbers as doubles.
EXACT = 2**53
MAX_LITERAL_DEPTH = 16
# Larger bounds do not fit in the decimal automaton.
MAX_BOUND = 10**15
_SHORT_ESCAPES = frozenset("\b\t\n\f\r")


def check_text(text: str, what: str) -> None:
    """Reject a string that JSON cannot write.

    Raises:
        PartError: The string contains half of a surrogate pair.
    """
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise PartError(f"{what} contains half of a surrogate pair", invalid=True)


def numeric_escape(text: str) -> str | None:
    """Return the first character that JSON can only write with a numeric escape, such as U+0001."""
    return next((char for char in text if (char < " " and char not in _SHORT_ESCAPES) or char == "\x7f"), None)


def check_literal(value: object, depth: int = 0) -> int:
    """Check a constant and return the number of values in it, including itself.

    Raises:
        PartError: The constant is not representable exactly, or is nested too deeply.
    """
    if depth > MAX_LITERAL_DEPTH:
        raise PartError("a constant is nested too deeply", complex_=True)
    if isinstance(value, str):
        check_text(value, "a constant")
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        if abs(value) > EXACT:
            raise PartError(f"{_short(value)} is beyond the integers that a double represents exactly")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise PartError("a constant is NaN or infinity", invalid=True)
        if not _is_exact(value):
            raise PartError(f"{value!r} has too many digits to be enforced")
    elif isinstance(value, list):
        return 1 + sum(check_literal(item, depth + 1) for item in value)
    elif isinstance(value, dict):
        for name in value:
            check_text(name, "a property name")
        return 1 + sum(check_literal(item, depth + 1) for item in value.values())
    else:
        raise PartError(f"a constant must be a JSON value, not {type(value).__name__}", invalid=True)
    return 1


def identity(value: Any) -> Hashable:
    """Return a key that is equal for values that JSON Schema considers equal: 1 and 1.0, but not 1 and true."""
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


def read_count(value: object, limit: int, name: str) -> int:
    """Read a length or a number of items.

    Raises:
        PartError: The value is not a count, or a minimum exceeds `limit`; a maximum is lowered to it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise PartError(f"`{name}` must be a whole number, not {_short(value)}", invalid=True)
    if value > limit:
        # A smaller maximum allows less, so it is no error.
        if name.startswith("max"):
            return limit
        raise PartError(f"`{name}` may be at most {limit}, not {_short(int(value))}", complex_=True)
    return int(value)


def read_bound(value: object, name: str) -> int | float:
    """Read the bound of a number.

    Raises:
        PartError: The value is not a number, or has too many digits to be enforced.
    """
    # An integer may be too large for `math.isfinite`.
    if isinstance(value, bool) or not isinstance(value, int | float) or not (-math.inf < value < math.inf):
        raise PartError(f"`{name}` must be a number, not {_short(value)}", invalid=True)
    if isinstance(value, float) and value != int(value):
        if abs(value) > MAX_BOUND or not _is_exact(value):
            raise PartError(f"`{name}` has too many digits to be enforced: {value!r}")
        return value
    return int(value)


def _is_exact(value: float) -> bool:
    """Whether llguidance parses the number exactly: its parser is exact for few digits and small exponents."""
    _, digits, exponent = Decimal(repr(value)).as_tuple()
    return int("".join(map(str, digits))) <= EXACT and isinstance(exponent, int) and -16 <= exponent <= 16


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"


def distinct(values: Iterable[Any]) -> list[Any]:
    """Return the values without duplicates, in the order of their first occurrences."""
    found: dict[Hashable, Any] = {}
    for value in values:
        found.setdefault(identity(value), value)
    return list(found.values())
