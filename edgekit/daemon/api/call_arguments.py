"""Reads the arguments of tool calls that a model made: JSON objects, some of them cut off."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from pydantic_core import from_json

__all__ = ["parse_arguments", "repair_arguments"]


def parse_arguments(text: str) -> dict[str, Any] | None:
    """Return a call's arguments, or None if they are not a complete JSON object; no text stands for no arguments.

    A number too large for a float, which a model may write, becomes the largest float: JSON has no infinity.
    """
    if not text.strip():
        return {}
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def repair_arguments(text: str) -> dict[str, Any] | None:
    """Return arguments that `max_tokens` or a stop string may have cut off, closed where they end; None if not JSON.

    A last string ends where it was cut; a key without a value and an unfinished number or literal are dropped.
    """
    complete = parse_arguments(text)
    if complete is not None:
        return complete
    try:
        value = _finite_numbers(from_json(text, allow_partial="trailing-strings"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _finite(text: str) -> float:
    return _clamped(float(text))


def _clamped(number: float) -> float:
    if math.isnan(number):
        raise ValueError("NaN is not a JSON number")
    return max(-sys.float_info.max, min(sys.float_info.max, number))


def _finite_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite_numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite_numbers(item) for item in value]
    return _clamped(value) if isinstance(value, float) else value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
