"""Lowers the keywords about objects, arrays, strings and numbers, one function each.

Before reading a keyword each function passes it to `at`, so that an error can name its path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from itertools import permutations
from math import ceil, floor, perm
from typing import Any

from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.keywords import FORMATS, NUMBER_FORMATS, OTHER_FORMATS
from edgekit.generation.grammar.literals import EXACT, MAX_BOUND, check_text, read_bound, read_count
from edgekit.generation.grammar.names import Names
from edgekit.generation.grammar.patterns import search, searches
from edgekit.generation.grammar.typos import meant

__all__ = ["lower_array", "lower_number", "lower_object", "lower_string"]

MAX_LENGTH = 20_000
MAX_ITEMS = 1000
# The automaton for `multipleOf` has as many states as its divisor.
MAX_DIVISOR = 1000
# Multiples of other numbers, and arrays without repetitions, that are written out.
MAX_MULTIPLES = 1000
MAX_ARRANGEMENTS = 2000
# Integers have at most 18 digits, so that their generation ends; a double represents 10^18 exactly.
MAX_INTEGER = 10**18

Node = Mapping[str, Any]
Inner = Callable[..., Any]
At = Callable[[str], None]


def lower_object(
    node: Node, inner: Inner, at: At, *, closes: bool = False, names: Names | None = None
) -> dict[str, Any]:
    """Lower the keywords about objects.

    Args:
        node: The schema.
        inner: Lowers a subschema.
        at: Is told the keyword that is read next.
        closes: Where the schema names properties and does not say otherwise, allow no others.
        names: What `propertyNames` allows.

    Raises:
        PartError: A keyword is malformed or not enforced; it is the last one passed to `at`.
    """
    out: dict[str, Any] = {}
    at("properties")
    properties = _mapping(node, "properties")
    for name in properties:
        check_text(name, "a property name")
    out["properties"] = {
        name: inner(value, "properties", name) for name, value in properties.items() if not names or names.allow(name)
    }
    at("patternProperties")
    patterns = {}
    for pattern, value in _mapping(node, "patternProperties").items():
        at("patternProperties")
        translated = search(pattern)
        patterns[translated] = inner(value, "patternProperties", pattern)
    if patterns:
        out["patternProperties"] = patterns
    at("required")
    required = node.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise PartError("`required` must be a list of names", invalid=True)
    required = list(dict.fromkeys(required))
    for name in required:
        check_text(name, "a property name")
        if names and not names.allow(name):
            raise PartError(f"no value satisfies this: `propertyNames` does not allow `{name[:40]}`")
    if required:
        out["required"] = required
    if "additionalProperties" in node:
        out["additionalProperties"] = inner(node["additionalProperties"], "additionalProperties")
    elif closes and properties and not patterns:
        for name in required:
            out["properties"].setdefault(name, True)
        out["additionalProperties"] = False
    if names and (patterns or out.get("additionalProperties", True) is not False):
        at("propertyNames")
        _restrict_names(out, names)
    return out | _property_counts(node, out, at)


def _restrict_names(out: dict[str, Any], names: Names) -> None:
    """Allow further properties only with names that `propertyNames` allows."""
    further = out.get("additionalProperties", True)
    if "patternProperties" in out:
        raise PartError("`propertyNames` next to `patternProperties` is not enforced", hint="use one of them")
    out["additionalProperties"] = False
    if names.constants is not None:
        for name in names.constants:
            check_text(name, "a property name")
            out["properties"].setdefault(name, further)
    elif further is not True and out["properties"]:
        # A pattern would apply to the named properties too.
        raise PartError("`propertyNames` next to `properties` and `additionalProperties` is not enforced")
    else:
        out["patternProperties"] = {names.pattern: further}


def _property_counts(node: Node, out: Node, at: At) -> dict[str, Any]:
    """Lower `minProperties` and `maxProperties`; drop the redundant, reject what cannot be enforced.

    A grammar allows an unlisted name to occur twice, which a JSON parser counts as one property.
    """
    named = {*out["properties"], *out.get("required", [])}
    free = out.get("additionalProperties", True) is not False or "patternProperties" in out
    required = len(out.get("required", []))
    optional = len(named) - required
    min_count = max_count = None
    if "minProperties" in node:
        at("minProperties")
        min_count = read_count(node["minProperties"], MAX_ITEMS, "minProperties") - required
    if "maxProperties" in node:
        at("maxProperties")
        max_count = read_count(node["maxProperties"], MAX_ITEMS, "maxProperties") - required
        if max_count < 0 or (min_count is not None and max_count < min_count):
            raise PartError("no value satisfies this: more properties are required than allowed")
    if min_count is not None and min_count <= 0:
        min_count = None
    if max_count is not None and not free and max_count >= optional:
        max_count = None
    if min_count is None and max_count is None:
        return {}
    at("minProperties" if min_count is not None else "maxProperties")
    if not free and min_count is not None and min_count > optional:
        raise PartError("no value satisfies this: `minProperties` exceeds the number of allowed properties")
    counted = (free and not optional and (min_count or 1) <= 1) or (
        not free and (min_count, max_count) in {(1, None), (None, 1), (1, 1)}
    )
    if not counted:
        hint = "list the properties in `required`"
        raise PartError("optional or unnamed properties are not counted", hint=hint)
    counts = {
        "minProperties": min_count and min_count + required,
        "maxProperties": max_count if max_count is None else max_count + required,
    }
    return {keyword: count for keyword, count in counts.items() if count is not None}


def lower_array(node: Node, inner: Inner, at: At, values: list[Any] | None) -> dict[str, Any]:
    """Lower the keywords about arrays; a list as `items` is the `prefixItems` of drafts before 2020-12.

    Args:
        node: The schema.
        inner: Lowers a subschema.
        at: Is told the keyword that is read next.
        values: The values that an item may have, if it is one of a few.

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
        out["prefixItems"] = [inner(item, prefix, index) for index, item in enumerate(node[prefix])]
    if rest in node:
        out["items"] = inner(node[rest], rest)
    for keyword in ("minItems", "maxItems"):
        if keyword in node:
            at(keyword)
            out[keyword] = read_count(node[keyword], MAX_ITEMS, keyword)
    if (unique := node.get("uniqueItems", False)) is not False:
        at("uniqueItems")
        if unique is not True:
            raise PartError("`uniqueItems` must be a boolean", invalid=True)
        if out.get("maxItems", 2) > 1:
            out = _arrangements(out, values)
    if out.get("minItems", 0) > out.get("maxItems", MAX_ITEMS):
        raise PartError("no value satisfies this: `minItems` exceeds `maxItems`")
    return out


def _arrangements(out: Mapping[str, Any], values: list[Any] | None) -> dict[str, Any]:
    """Write out all arrays without repetitions, up to the length at which they are too many."""
    low, high = out.get("minItems", 0), min(out.get("maxItems", MAX_ITEMS), len(values or []))
    if values is None or "prefixItems" in out:
        raise PartError(
            "`uniqueItems` is enforced only where `items` has an `enum`",
            hint="remove `uniqueItems`, or list the values",
        )
    total, length = 0, low
    while length <= high and total + perm(len(values), length) <= MAX_ARRANGEMENTS:
        total += perm(len(values), length)
        length += 1
    if length == low:
        raise PartError("no value satisfies this, or too many: there are too few distinct items, or too many")
    arrays = [list(chosen) for size in range(low, length) for chosen in permutations(values, size)]
    return {"arrays": arrays}


def lower_string(node: Node, at: At) -> tuple[dict[str, Any], list[str]]:
    """Lower the keywords about strings; also return further patterns that must match.

    Raises:
        PartError: As `lower_object`.
    """
    out: dict[str, Any] = {}
    further: list[str] = []
    for keyword in ("minLength", "maxLength"):
        if keyword in node:
            at(keyword)
            out[keyword] = read_count(node[keyword], MAX_LENGTH, keyword)
    if "pattern" in node:
        at("pattern")
        if not isinstance(node["pattern"], str):
            raise PartError("`pattern` must be a string", invalid=True)
        out["pattern"], *further = searches(node["pattern"])
    name = _format(node, at)
    if name in FORMATS:
        pattern, max_length = FORMATS[name]
        if pattern is None:
            out["format"] = name
        else:
            further.append(f"^(?:{pattern})$")
        if max_length is not None:
            out["maxLength"] = min(out.get("maxLength", max_length), max_length)
    if out.get("minLength", 0) > out.get("maxLength", MAX_LENGTH):
        raise PartError("no value satisfies this: `minLength` exceeds the maximum length")
    if further and "pattern" not in out:
        out["pattern"] = further.pop()
    return out, further


def _format(node: Node, at: At) -> str:
    """The format of a string; an unknown one is an annotation, unless it is a misspelt one."""
    name = node.get("format", "")
    if "format" in node:
        at("format")
    if not isinstance(name, str):
        raise PartError("`format` must be a string", invalid=True)
    if name not in {*FORMATS, *OTHER_FORMATS} and (close := meant(name, FORMATS)):
        raise PartError(f"the format `{name[:40]}` is unknown", hint=f"did you mean `{close}`?")
    return name


def lower_number(node: Node, types: list[str], at: At) -> dict[str, Any]:
    """Lower the keywords about numbers; a bound that cannot be enforced is tightened, never loosened.

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
        if divisor <= 0:
            raise PartError("`multipleOf` must be greater than 0", invalid=True)
        if _digits(divisor) > MAX_DIVISOR:
            return {"values": _multiples(divisor, low, high, whole="number" not in types)}
    at("minimum")
    if "number" in types and not isinstance(divisor, int):
        return _real_bounds(low, high) | ({"multipleOf": divisor} if divisor else {})
    lower = -MAX_INTEGER if low is None else (floor(low[0]) + 1 if low[1] else ceil(low[0]))
    upper = MAX_INTEGER if high is None else (ceil(high[0]) - 1 if high[1] else floor(high[0]))
    # Between 2^53 and 10^18 a double would round the bound.
    lower = lower if abs(lower) <= EXACT else -MAX_INTEGER if lower <= -MAX_INTEGER else _inward(lower, -EXACT)
    upper = upper if abs(upper) <= EXACT else MAX_INTEGER if upper >= MAX_INTEGER else -_inward(-upper, -EXACT)
    step = divisor or 1
    if lower > upper or (isinstance(step, int) and -(-lower // step) * step > upper):
        raise PartError("no value satisfies this: there is no such integer")
    out: dict[str, Any] = {"minimum": lower, "maximum": upper}
    return out | ({"multipleOf": divisor} if divisor else {})


def _digits(divisor: float) -> int:
    """The digits of a divisor as a number: the states that its automaton needs."""
    return int("".join(map(str, Decimal(repr(divisor)).as_tuple().digits)))


def _multiples(
    divisor: float, low: tuple[int | float, bool] | None, high: tuple[int | float, bool] | None, *, whole: bool
) -> list[int | float]:
    """The multiples closest to zero, where an automaton for all of them would be too large."""
    step = Fraction(Decimal(repr(divisor)))
    least, most = Fraction(-EXACT) / step, Fraction(EXACT) / step
    if low is not None:
        bound = Fraction(Decimal(repr(low[0]))) / step
        least = max(least, Fraction(floor(bound) + 1 if low[1] else ceil(bound)))
    if high is not None:
        bound = Fraction(Decimal(repr(high[0]))) / step
        most = min(most, Fraction(ceil(bound) - 1 if high[1] else floor(bound)))
    first, last = ceil(least), floor(most)
    start = min(max(first, -MAX_MULTIPLES // 2), max(last - MAX_MULTIPLES, first))
    found: list[int | float] = []
    for factor in range(start, min(last, start + MAX_MULTIPLES) + 1):
        value = factor * step
        number: int | float = int(value) if value.denominator == 1 else float(value)
        if (isinstance(number, int) or not whole) and Fraction(Decimal(repr(number))) == value:
            found.append(number)
    if not found:
        raise PartError("no value satisfies this: there is no such multiple")
    return found


def _real_bounds(low: tuple[int | float, bool] | None, high: tuple[int | float, bool] | None) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if low is not None and low[0] > -MAX_BOUND:
        if low[0] > MAX_BOUND:
            raise PartError(f"`minimum` of a number may be at most {MAX_BOUND}")
        out["exclusiveMinimum" if low[1] else "minimum"] = low[0]
    if high is not None and high[0] < MAX_BOUND:
        if high[0] < -MAX_BOUND:
            raise PartError(f"`maximum` of a number must be at least -{MAX_BOUND}")
        out["exclusiveMaximum" if high[1] else "maximum"] = high[0]
    # A bound beyond MAX_BOUND is replaced by MAX_BOUND.
    if low is not None and not out.keys() & {"minimum", "exclusiveMinimum"}:
        out["minimum"] = -MAX_BOUND
    if high is not None and not out.keys() & {"maximum", "exclusiveMaximum"}:
        out["maximum"] = MAX_BOUND
    if low and high and (low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))):
        raise PartError("no value satisfies this: the lower bound exceeds the upper bound")
    return out


def _limit(node: Node, side: str, at: At) -> tuple[int | float, bool] | None:
    """The bound on one side, and whether it is exclusive."""
    exclusive = f"exclusive{side.capitalize()}"
    bounds: list[tuple[int | float, bool]] = []
    if side in node:
        at(side)
        bounds.append((read_bound(node[side], side), node.get(exclusive) is True))
    # A boolean next to the bound in draft 4, a bound itself in later drafts.
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


def _inward(lower: int, exact: int) -> int:
    """Tighten a lower bound to one that a double represents exactly."""
    if lower > exact:
        raise PartError(f"bounds of integers beyond {EXACT} are not enforced exactly")
    return exact


def _mapping(node: Node, keyword: str) -> dict[str, Any]:
    value = node.get(keyword, {})
    if not isinstance(value, dict):
        raise PartError(f"`{keyword}` must be an object", invalid=True)
    return value
