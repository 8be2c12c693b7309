"""What a schema says about objects, arrays, strings and numbers, one function each.

They know nothing of references and alternatives. A place within the schema is told to `at` before it is read, so that a
complaint can name it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, floor
from typing import Any

from edgekit.errors import nearest
from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.keywords import FORMATS, NUMBER_FORMATS
from edgekit.generation.grammar.literals import EXACT, MAX_BOUND, check_text, read_bound, read_count
from edgekit.generation.grammar.patterns import search

__all__ = ["KEYWORDS_OF", "lower_array", "lower_number", "lower_object", "lower_string"]

MAX_LENGTH = 20_000
MAX_ITEMS = 1000
# An automaton that divides has as many states as its divisor.
MAX_DIVISOR = 1000
# Integers have 18 digits at most, so that a model cannot write digits without end; a double holds 10^18 exactly.
MAX_INTEGER = 10**18

KEYWORDS_OF: Mapping[str, frozenset[str]] = {
    "object": frozenset(
        [
            *("properties", "required", "additionalProperties", "patternProperties"),
            *("minProperties", "maxProperties"),
        ]
    ),
    "array": frozenset(["items", "prefixItems", "additionalItems", "minItems", "maxItems"]),
    "string": frozenset(["minLength", "maxLength", "pattern", "format"]),
    "number": frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]),
}

Node = Mapping[str, Any]
Inner = Callable[..., Any]
At = Callable[[str], None]


def lower_object(node: Node, inner: Inner, at: At) -> dict[str, Any]:
    """Return the words about an object.

    Raises:
        PartError: Something is malformed or not enforced; `at` was told where.
    """
    out: dict[str, Any] = {}
    at("properties")
    properties = _mapping(node, "properties")
    for name in properties:
        check_text(name, "a property's name")
    out["properties"] = {name: inner(value, "properties", name) for name, value in properties.items()}
    patterns = {}
    for pattern, value in _mapping(node, "patternProperties").items():
        at("patternProperties")
        translated = search(pattern)
        patterns[translated] = inner(value, "patternProperties", pattern)
    if patterns:
        out["patternProperties"] = patterns
    at("required")
    required = list(dict.fromkeys(node.get("required", [])) if isinstance(node.get("required", []), list) else [None])
    if not all(isinstance(name, str) for name in required):
        raise PartError("`required` must be a list of names", invalid=True)
    for name in required:
        check_text(name, "a property's name")
    if required:
        out["required"] = required
    if "additionalProperties" in node:
        out["additionalProperties"] = inner(node["additionalProperties"], "additionalProperties")
    return out | _property_counts(node, out, at)


def _property_counts(node: Node, out: Node, at: At) -> dict[str, Any]:
    """Keep `minProperties` and `maxProperties` where they are needed and enforced.

    Names that are not listed may repeat in what a grammar takes, and a parser counts them once.
    """
    named = {*out["properties"], *out.get("required", [])}
    free = out.get("additionalProperties", True) is not False or "patternProperties" in out
    required = len(out.get("required", []))
    optional = len(named) - required
    least = most = None
    if "minProperties" in node:
        at("minProperties")
        least = read_count(node["minProperties"], MAX_ITEMS, "minProperties") - required
    if "maxProperties" in node:
        at("maxProperties")
        most = read_count(node["maxProperties"], MAX_ITEMS, "maxProperties") - required
        if most < 0 or (least is not None and most < least):
            raise PartError("nothing satisfies this: more properties are required than allowed")
    if least is not None and least <= 0:
        least = None
    if most is not None and not free and most >= optional:
        most = None
    if least is None and most is None:
        return {}
    at("minProperties" if least is not None else "maxProperties")
    if not free and least is not None and least > optional:
        raise PartError("nothing satisfies this: more properties are demanded than allowed")
    counted = (free and not optional and (least or 1) <= 1) or (
        not free and (least, most) in {(1, None), (None, 1), (1, 1)}
    )
    if not counted:
        hint = "say with `required` which properties there must be"
        raise PartError("properties are not counted beside optional ones, nor ones without a name", hint=hint)
    counts = {"minProperties": least and least + required, "maxProperties": most if most is None else most + required}
    return {word: count for word, count in counts.items() if count is not None}


def lower_array(node: Node, inner: Inner, at: At) -> dict[str, Any]:
    """Return the words about an array; a list in `items` is what drafts before 2020-12 called `prefixItems`.

    Raises:
        PartError: As `lower_object`.
    """
    out: dict[str, Any] = {}
    old = isinstance(node.get("items"), list)
    prefix = "items" if old else "prefixItems"
    rest = "additionalItems" if old else "items"
    if prefix in node:
        at(prefix)
        if not isinstance(node[prefix], list):
            raise PartError(f"`{prefix}` must be a list of schemas", invalid=True)
        out["prefixItems"] = [inner(item, prefix, number) for number, item in enumerate(node[prefix])]
    if rest in node:
        out["items"] = inner(node[rest], rest)
    for word in ("minItems", "maxItems"):
        if word in node:
            at(word)
            out[word] = read_count(node[word], MAX_ITEMS, word)
    if out.get("minItems", 0) > out.get("maxItems", MAX_ITEMS):
        raise PartError("nothing satisfies this: more items are demanded than allowed")
    return out


def lower_string(node: Node, at: At) -> tuple[dict[str, Any], list[str]]:
    """Return the words about a string, and further patterns that it must match.

    Raises:
        PartError: As `lower_object`.
    """
    out: dict[str, Any] = {}
    further = []
    for word in ("minLength", "maxLength"):
        if word in node:
            at(word)
            out[word] = read_count(node[word], MAX_LENGTH, word)
    if "pattern" in node:
        at("pattern")
        if not isinstance(node["pattern"], str):
            raise PartError("`pattern` must be a text", invalid=True)
        out["pattern"] = search(node["pattern"])
    name = node.get("format")
    if name is not None and name not in NUMBER_FORMATS:
        at("format")
        if not isinstance(name, str) or name not in FORMATS:
            known = ", ".join(FORMATS)
            close = nearest(name, FORMATS) if isinstance(name, str) else None
            hint = f"did you mean `{close}`?" if close else f"known formats: {known}"
            raise PartError(f"the format `{str(name)[:40]}` is not enforced", hint=hint)
        pattern, longest = FORMATS[name]
        if pattern is None:
            out["format"] = name
        else:
            further.append(f"^(?:{pattern})$")
        if longest is not None:
            out["maxLength"] = min(out.get("maxLength", longest), longest)
    if out.get("minLength", 0) > out.get("maxLength", MAX_LENGTH):
        raise PartError("nothing satisfies this: the text is to be longer than it may be")
    if further and "pattern" not in out:
        out["pattern"] = further.pop()
    return out, further


def lower_number(node: Node, types: list[str], at: At) -> dict[str, Any]:
    """Return the words about a number; bounds beyond what is enforced are drawn in, never out.

    Raises:
        PartError: As `lower_object`.
    """
    low, high = (_limit(node, side, at) for side in ("minimum", "maximum"))
    name = node.get("format")
    if isinstance(name, str) and (span := NUMBER_FORMATS.get(name)):
        low = max(low or (span[0], False), (span[0], False), key=_lower_key)
        high = min(high or (span[1], False), (span[1], False), key=_upper_key)
    divisor = None
    if "multipleOf" in node:
        at("multipleOf")
        divisor = read_bound(node["multipleOf"], "multipleOf")
        if not isinstance(divisor, int) or not 1 <= divisor <= MAX_DIVISOR:
            raise PartError(f"`multipleOf` is enforced for whole numbers from 1 to {MAX_DIVISOR}")
    at("minimum")
    if "number" in types and divisor is None:
        return _real_bounds(low, high)
    least = -MAX_INTEGER if low is None else (floor(low[0]) + 1 if low[1] else ceil(low[0]))
    most = MAX_INTEGER if high is None else (ceil(high[0]) - 1 if high[1] else floor(high[0]))
    # Between the integers that a double holds and 10^18 a bound would be rounded.
    least = least if abs(least) <= EXACT else -MAX_INTEGER if least <= -MAX_INTEGER else _inward(least, -EXACT)
    most = most if abs(most) <= EXACT else MAX_INTEGER if most >= MAX_INTEGER else -_inward(-most, -EXACT)
    step = divisor or 1
    if least > most or -(-least // step) * step > most:
        raise PartError("nothing satisfies this: no such integer exists")
    out: dict[str, Any] = {"minimum": least, "maximum": most}
    return out | ({"multipleOf": divisor} if divisor else {})


def _real_bounds(low: tuple[int | float, bool] | None, high: tuple[int | float, bool] | None) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if low is not None and low[0] > -MAX_BOUND:
        if low[0] > MAX_BOUND:
            raise PartError(f"`minimum` of a number may be {MAX_BOUND:g} at most")
        out["exclusiveMinimum" if low[1] else "minimum"] = low[0]
    if high is not None and high[0] < MAX_BOUND:
        if high[0] < -MAX_BOUND:
            raise PartError(f"`maximum` of a number may be {-MAX_BOUND:g} at least")
        out["exclusiveMaximum" if high[1] else "maximum"] = high[0]
    # One that lies so far out that it is not written still holds.
    if low is not None and not out.keys() & {"minimum", "exclusiveMinimum"}:
        out["minimum"] = -MAX_BOUND
    if high is not None and not out.keys() & {"maximum", "exclusiveMaximum"}:
        out["maximum"] = MAX_BOUND
    if low and high and (low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))):
        raise PartError("nothing satisfies this: the lower bound is above the upper one")
    return out


def _limit(node: Node, side: str, at: At) -> tuple[int | float, bool] | None:
    """The bound on one side, and whether it is itself left out."""
    exclusive = f"exclusive{side.capitalize()}"
    bounds: list[tuple[int | float, bool]] = []
    if side in node:
        at(side)
        bounds.append((read_bound(node[side], side), node.get(exclusive) is True))
    # Draft 4 has a boolean beside the bound, later ones a bound of its own.
    if exclusive in node and not isinstance(node[exclusive], bool):
        at(exclusive)
        bounds.append((read_bound(node[exclusive], exclusive), True))
    if not bounds:
        return None
    return max(bounds, key=_lower_key) if side == "minimum" else min(bounds, key=_upper_key)


def _lower_key(bound: tuple[int | float, bool]) -> tuple[int | float, bool]:
    return bound


def _upper_key(bound: tuple[int | float, bool]) -> tuple[int | float, bool]:
    return bound[0], not bound[1]


def _inward(least: int, exact: int) -> int:
    """A lower bound moved up to one that is exact."""
    if least > exact:
        raise PartError(f"integers beyond {EXACT} are not bounded exactly")
    return exact


def _mapping(node: Node, word: str) -> dict[str, Any]:
    value = node.get(word, {})
    if not isinstance(value, dict):
        raise PartError(f"`{word}` must be an object", invalid=True)
    return value
