"""Hypothesis strategies for JSON schemas that edgekit enforces."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

__all__ = ["PATTERNS", "schemas"]

Schema = dict[str, Any]
NAMES = st.sampled_from(["a", "b", "name", "käse", 'q"uote', "sl/ash", "with space", "$ref", "enum", "\n"])
STRINGS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=5) | NAMES
PATTERNS = (
    r"^\d{3}-[A-Z]+$",
    r"^(foo|ba[rz])*$",
    r"b",
    r"^[^\s\w]{1,3}$",
    r"^\S+@\S+$",
    r"^.{2,4}$",
    r"x|^y$",
    r"^\w+(\.\w+)?$",
    r"^[\x20-\x7e]*$",
    r"^\/[a-z\/]*$",
    r"^[\]\[^-]+$",
    r"^[a&b]+$",
    r"^\D\W\S$",
    r"^[^\D]{2}$",
    r"^\u00e9?$",
    r'^["\\]+$',
    r"^(?:a|b){2}?c$",
)


def _numbers(kind: str) -> st.SearchStrategy[Schema]:
    bound: st.SearchStrategy[Any] = st.integers(-1200, 1200)
    if kind == "number":
        bound = bound | st.sampled_from([0.5, -0.25, 1e-3, 12.125, -99.9, 0.1, 1000000.5])

    @st.composite
    def build(draw: st.DrawFn) -> Schema:
        schema: Schema = {"type": kind}
        low, high = sorted([draw(bound), draw(bound)])
        if draw(st.booleans()):
            schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
        if draw(st.booleans()):
            schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = high + (10 if kind == "integer" else 1)
        if draw(st.integers(0, 3)) == 0:
            schema["multipleOf"] = draw(st.integers(1, 7))
        return schema

    return build()


@st.composite
def _strings(draw: st.DrawFn) -> Schema:
    schema: Schema = {"type": "string"}
    choice = draw(st.integers(0, 4))
    if choice == 0:
        schema["pattern"] = draw(st.sampled_from(PATTERNS))
    elif choice == 1:
        schema["minLength"] = draw(st.integers(0, 3))
        schema["maxLength"] = schema["minLength"] + draw(st.integers(0, 4))
    elif choice == 2:
        schema["format"] = draw(st.sampled_from(["date", "date-time", "time", "uuid", "ipv4", "ipv6"]))
    elif choice == 3:
        schema |= {"pattern": r"^\w+$", "minLength": 2, "maxLength": 6}
    return schema


def _leaves() -> st.SearchStrategy[Schema | bool]:
    constant = (
        st.none()
        | st.booleans()
        | st.integers(-1000, 1000)
        | st.integers(-9999, 9999).map(lambda number: number / 1000)
        | STRINGS
    )
    nested = constant | st.lists(constant, max_size=2) | st.dictionaries(NAMES, constant, max_size=2)
    return st.one_of(
        st.just({"type": "null"}),
        st.just({"type": "boolean"}),
        _numbers("integer"),
        _numbers("number"),
        _strings(),
        nested.map(lambda value: {"const": value}),
        st.lists(nested, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        st.sampled_from([{"type": ["string", "null"]}, {"type": ["integer", "boolean"], "minimum": 2}, {}, True]),
    )


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Schema:
    properties = draw(st.dictionaries(NAMES, inner, max_size=4))
    schema: Schema = {"type": "object", "properties": properties}
    if draw(st.booleans()) and properties:
        schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
    further = draw(st.integers(0, 3))
    if further == 1:
        schema["additionalProperties"] = False
    elif further == 2:
        schema["additionalProperties"] = draw(inner)
    elif further == 3:
        schema["patternProperties"] = {"^x-": draw(inner)}
        schema["additionalProperties"] = draw(st.sampled_from([True, False]))
    if not properties and draw(st.booleans()):
        schema["minProperties"] = 1
        schema["maxProperties"] = draw(st.integers(1, 3))
    return schema


@st.composite
def _arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Schema:
    schema: Schema = {"type": "array"}
    if draw(st.booleans()):
        schema["items"] = draw(inner)
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
    if draw(st.booleans()):
        schema["minItems"] = draw(st.integers(0, 2))
        schema["maxItems"] = schema["minItems"] + draw(st.integers(0, 2))
    return schema


@st.composite
def _composed(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Schema:
    """Schemas that must all match, or of which exactly one must."""
    one, other = draw(_objects(inner)), draw(_objects(inner))
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return {"allOf": [one, other]}
    if kind == 1:
        return one | {"anyOf": [{"required": [name]} for name in one["properties"] or {"a": 0}]}
    if kind == 2:
        return {"$ref": "#/$defs/tree~1~0", "properties": {"v": draw(inner)}, "required": ["kids"]}
    if kind == 3:
        for number, option in enumerate((one, other)):
            option["properties"]["tag"] = {"const": number}
            option["required"] = [*option.get("required", []), "tag"]
        return {"oneOf": [one, other, {"type": "string", "maxLength": 3}]}
    return draw(_numbers("integer")) | {"allOf": [draw(_numbers("integer")), {"type": ["integer", "null"]}]}


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    """A schema with nesting, alternatives and references."""
    references = st.sampled_from([{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/tree~1~0"}])
    inner = st.recursive(
        _leaves() | references,
        lambda part: st.one_of(
            _objects(part),
            _arrays(part),
            _composed(part),
            st.lists(part, min_size=1, max_size=3).map(lambda some: {"anyOf": some}),
        ),
        max_leaves=6,
    )
    root: Schema = draw(
        st.one_of(_objects(inner), _arrays(inner), inner.map(lambda part: {"anyOf": [part, {"type": "null"}]}))
    )
    leaf = draw(_leaves())
    kids = {"type": "array", "items": {"$ref": "#/$defs/tree~1~0"}, "maxItems": 2}
    tree = {"type": "object", "properties": {"v": leaf, "kids": kids}}
    return root | {"$defs": {"leaf": leaf, "tree/~": tree}}
