"""Decodes JSON bodies, and names the field of a value that could not be encoded again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from edgekit.errors import RequestError, field_path, spelled

__all__ = ["check_values", "decode", "json_object", "parse_object", "shown"]

_HINT = 'send {"messages": [{"role": "user", "content": "…"}]}'
# json.dumps refuses integers of more than 4300 digits, and no field takes one.
_MAX_INTEGER_BITS = 14_000


def decode(data: bytes | Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a body.

    Args:
        data: The body, as JSON or decoded.

    Raises:
        RequestError: It is not a JSON object, or has values that cannot be encoded again.
    """
    fields = parse_object(data, "the body") if isinstance(data, bytes) else dict(data)
    check_values(fields)
    return fields


def parse_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object; NaN and Infinity are read, for `check_values` to name their fields.

    Args:
        text: The JSON.
        what: What it is, for messages: `the body`.

    Raises:
        RequestError: It is not a JSON object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{what} is not JSON: {error}", hint=_HINT) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{what} is not UTF-8", hint="send JSON encoded as UTF-8") from error
    except RecursionError as error:
        raise RequestError(f"{what} is nested too deeply") from error
    except ValueError as error:
        # Python's limit for integers of more than 4300 digits.
        raise RequestError(f"{what} contains a number with too many digits") from error
    if not isinstance(value, dict):
        raise RequestError(f"{what} must be a JSON object, not {shown(value)}", hint=_HINT)
    return value


def json_object(text: str, at: str, expected: str) -> dict[str, Any]:
    """Return the JSON object that a string in a body contains.

    Args:
        text: The string.
        at: Its path in the body, for the message.
        expected: What it must be, for the message.

    Raises:
        RequestError: It is not a JSON object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestError(f"`{at}` must be {expected}", param=at)
    check_values(value, at)
    return value


def check_values(fields: Mapping[str, Any], at: str = "") -> None:
    """Refuse values that cannot be encoded again: NaN, infinity, halves of surrogate pairs, deep nesting.

    Args:
        fields: A JSON object.
        at: The path of the string in the body that contains it; "" if it is the body.

    Raises:
        RequestError: The message names the value's path; `param` is that path, or `at`.
    """
    for name, value in fields.items():
        if not _encodable({name: value}):
            path, problem = _fault(name, value)
            where = field_path(path, at)
            raise RequestError(f"`{where}` {problem}", param=at or where)


def shown(value: object) -> str:
    """Return how a message refers to a JSON value: a short one as it is written, a longer one by its type."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return spelled(value)
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def _fault(name: str, value: object) -> tuple[list[str | int], str]:
    """Return the path of a value in a field that cannot be encoded, and what is wrong with it."""
    # Paths are linked lists: copied tuples of a deep value would be quadratic in its depth.
    stack: list[tuple[Any, str | int, object]] = [(None, name, value)]
    while stack:
        node = stack.pop()
        _, key, item = node
        problem = _problem(item) or (_problem(key) if isinstance(key, str) else "")
        if problem:
            return _steps(node), problem
        if isinstance(item, dict):
            stack += [(node, inner, item[inner]) for inner in reversed(item)]
        elif isinstance(item, list):
            stack += [(node, index, item[index]) for index in reversed(range(len(item)))]
    return [name], "is nested too deeply"


def _steps(node: Any) -> list[str | int]:
    steps = []
    while node is not None:
        node, key, _ = node
        steps.append(key)
    return steps[::-1]


def _problem(value: object) -> str:
    """Return what is wrong with a value, apart from its parts; "" if nothing is."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, not {'NaN' if math.isnan(value) else 'infinity'}"
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        return "is a number with too many digits"
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        # JSON can escape half of a surrogate pair; tokenizers and replies cannot encode it.
        return "contains half of a surrogate pair, which is not a character"
    return ""
