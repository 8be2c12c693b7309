"""Keywords constrain values of their own type only, and the types of a place may be stated at another one."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edgekit.errors import RequestError
from tests.generation.grammar.kits import kit
from tests.generation.grammar.test_schema import BYTES, takes

VALUES: list[Any] = [None, True, 1, 2.5, 7, "", "ab", [], [1], [1, 2, 3], {}, {"a": 1}, {"a": "x"}, {"a": 1, "b": 2}]
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]
# Each names both properties that the values have, or none, so that no object is closed against them.
KEYWORDS: list[dict[str, Any]] = [
    {"required": ["a"]},
    {"properties": {"a": {"type": "integer"}, "b": {}}},
    {"additionalProperties": {"type": "integer"}},
    {"dependentRequired": {"a": ["b"]}},
    {"dependentSchemas": {"b": {"required": ["a"]}}},
    {"minItems": 1},
    {"items": {"type": "integer"}, "maxItems": 2},
    {"minLength": 1},
    {"pattern": "^a"},
    {"minimum": 2},
    {"multipleOf": 1},
    {"additionalProperties": True},
]


@st.composite
def merged(draw: st.DrawFn) -> dict[str, Any]:
    """A schema whose types are stated at one place, with keywords of several types there and at others."""
    types: Any = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True))
    stated: dict[str, Any] = {"type": types if len(types) > 1 else types[0]}
    parts = draw(st.lists(st.sampled_from(KEYWORDS), min_size=1, max_size=3))
    definitions: dict[str, Any] = {}
    schema: dict[str, Any] = {}
    at = draw(st.sampled_from(["here", "all", "any", "reference"]))
    if at == "here":
        schema = dict(stated)
    elif at == "any":
        schema = {"anyOf": [{"type": name} for name in types]}
    elif at == "reference":
        schema, definitions["types"] = {"$ref": "#/$defs/types"}, stated
    members = [stated] if at == "all" else []
    for number, part in enumerate(parts):
        place = draw(st.sampled_from(["here", "all", "reference", "then"]))
        if place == "here":
            schema = {**part, **schema}
        elif place == "all":
            members.append(part)
        elif place == "then":
            members.append({"if": {"const": 7}, "then": {"multipleOf": 7}, "else": part})
        else:
            members.append({"$ref": f"#/$defs/d{number}"})
            definitions[f"d{number}"] = part
    if members:
        schema["allOf"] = members
    return schema | {"$defs": definitions}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=merged())
def test_a_schema_with_stated_types_allows_exactly_the_valid_values(schema: Any) -> None:
    judge = Draft202012Validator(schema)
    valid = [judge.is_valid(value) for value in VALUES]
    try:
        kit(BYTES).schema(schema)
    except RequestError as error:
        # None of the values, and perhaps none at all.
        assert not any(valid), error.message  # noqa: PT017
        return
    for value, is_valid in zip(VALUES, valid, strict=True):
        # Properties come in the order in which the schema names them.
        orders = [dict(order) for order in permutations(value.items())] if isinstance(value, dict) else [value]
        assert any(takes(schema, json.dumps(order)) for order in orders) is is_valid, value
