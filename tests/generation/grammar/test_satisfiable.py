"""Options of a `oneOf` are kept apart only where they provably are; and what no value satisfies is removed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.satisfiable import MAX_SHORTEST, prune
from tests.generation.grammar.test_schema import taken, takes

NAMED: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"const": 1}},
    "required": ["a"],
    "additionalProperties": True,
}
UNNAMED: dict[str, Any] = {"type": "object", "required": ["a"], "additionalProperties": True}


@pytest.mark.parametrize("options", [[NAMED, UNNAMED], [UNNAMED, NAMED]])
def test_a_required_property_that_one_option_does_not_describe_does_not_keep_them_apart(options: list[Any]) -> None:
    assert not takes({"oneOf": options}, '{"a": 1}'), "both options match it"
    assert takes({"oneOf": options}, '{"a": 2}')


def test_a_required_property_that_no_option_describes_does_not_keep_them_apart() -> None:
    schema = {"oneOf": [UNNAMED, UNNAMED | {"required": ["a", "b"]}]}
    assert takes(schema, '{"a": 1}')
    assert not takes(schema, '{"a": 1, "b": 1}'), "both options match it"


@pytest.mark.parametrize("swapped", [False, True])
def test_a_property_keeps_options_apart_only_where_both_require_it(swapped: bool) -> None:
    required = NAMED | {"properties": {"a": {"const": 2}}}
    optional = {key: value for key, value in UNNAMED.items() if key != "required"}
    for other, text, allowed in (
        (required, '{"a": 1}', True),
        (required, '{"a": 2}', True),
        (required, '{"a": 3}', False),
        (optional, '{"a": 1}', False),
        (optional, "{}", True),
    ):
        assert takes({"oneOf": [other, NAMED] if swapped else [NAMED, other]}, text) is allowed


VALUES: list[Any] = [
    *(None, True, 1, 2, 3, 1.5, "a", "b", [], [1]),
    *({}, {"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1}, {"x": 1}),
]
A, B = {"type": "object", "required": ["a"]}, {"type": "object", "required": ["b"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        {"oneOf": [{"type": ["integer", "null"]}, {"type": ["string", "null"]}]},
        {"oneOf": [{"enum": [1, "a"]}, {"enum": ["a", 2]}]},
        {"oneOf": [{"enum": [1, "a"]}, {"enum": [2, "b"]}]},
        {"oneOf": [{"enum": [1, 2, 3]}, {"const": 2.0}]},
        {"oneOf": [{"type": "array"}, {"type": ["null", "boolean"]}, {"type": "string"}]},
        {"oneOf": [{"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": "integer"}]},
        {"oneOf": [{"type": "integer"}, {"anyOf": [{"type": "string"}, {"type": "null"}]}]},
        {"oneOf": [{"anyOf": [{"type": "string"}, {"type": "integer"}]}, {"type": "string"}]},
        {"oneOf": [{"type": "string"}, {"anyOf": [{"type": "integer"}, {"type": "string"}]}]},
        {"oneOf": [False, {"type": "null"}]},
        {"oneOf": [{"type": "null"}, False]},
        {
            "oneOf": [{"$ref": "#/$defs/s"}, {"$ref": "#/$defs/i"}],
            "$defs": {"s": {"type": "string"}, "i": {"const": 1}},
        },
        {
            "oneOf": [
                {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False},
                {"type": "object", "properties": {"b": {"const": 1}}, "required": ["b"], "additionalProperties": False},
            ]
        },
        {
            "oneOf": [
                {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False},
                {"type": "object", "properties": {"a": {"const": 2}}, "required": ["a"], "additionalProperties": False},
                {"type": "null"},
            ]
        },
    ],
)
def test_exactly_the_values_that_one_option_matches_are_allowed(schema: dict[str, Any]) -> None:
    judge = Draft202012Validator(schema)
    texts = [json.dumps(value) for value in VALUES]
    assert taken(schema, texts) == [text for text, value in zip(texts, VALUES, strict=True) if judge.is_valid(value)]


@pytest.mark.parametrize(
    "options",
    [
        [A, B],
        [A, A | {"required": ["a", "b"]}],
        [A | {"properties": {"a": {"const": 1}}}, B | {"properties": {"b": {"const": 1}}}],
        [{"type": "object", "properties": {"a": {}}, "additionalProperties": False}, B],
        [B, {"type": "object", "properties": {"a": {}}, "additionalProperties": False}],
        [A | {"patternProperties": {"^b": {}}, "properties": {"a": {}}}, B | {"properties": {"b": {}}}],
        [{"anyOf": [A, {"type": "null"}]}, {"type": ["null", "string"]}],
        [True, {"type": "null"}],
        [{"type": ["integer", "string"]}, {"type": ["number", "null"], "not": {"const": 2}}],
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_no_value_that_two_options_match_is_allowed(options: list[Any], swapped: bool) -> None:
    schema = {"oneOf": options[::-1] if swapped else options}
    judge = Draft202012Validator(schema)
    texts = [json.dumps(value) for value in VALUES]
    found = taken(schema, texts)
    assert found
    assert [text for text in found if not judge.is_valid(json.loads(text))] == []


def test_a_property_that_the_other_option_forbids_keeps_them_apart_whatever_it_is() -> None:
    # The opposite of a pattern cannot be described.
    options = [
        {"type": "object", "properties": {name: {"pattern": "^x"}}, "required": [name], "additionalProperties": False}
        for name in "ab"
    ]
    texts = ['{"a":"x"}', '{"b":"x"}', '{"a":"y"}', "{}", '{"a":"x","b":"x"}']
    assert taken({"oneOf": options}, texts) == texts[:2]


# The shortest value has two characters more than `MAX_SHORTEST`, so that its exact length shows in the refusal.
LONG = {"enum": ["x" * MAX_SHORTEST]}
BASE = MAX_SHORTEST + 2


@pytest.mark.parametrize(
    ("schema", "length"),
    [
        (LONG, BASE),
        ({"enum": ["x" * (MAX_SHORTEST + 9), *LONG["enum"]]}, BASE),
        ({"type": "string", "minLength": MAX_SHORTEST}, BASE),
        ({"enum": ["é" * MAX_SHORTEST]}, BASE),
        ({"allOf": [LONG, {"enum": ["x" * (MAX_SHORTEST + 3), 1]}, {"type": "string"}]}, BASE),
        ({"anyOf": [{"enum": ["x" * (MAX_SHORTEST + 9)]}, LONG]}, BASE),
        ({"type": "object", "properties": {"ab": LONG, "c": LONG}, "required": ["ab"]}, 2 + 4 + 2 + BASE),
        ({"type": "object", "properties": {"ab": LONG, "c": {}}, "required": ["ab", "c"]}, 2 + 6 + BASE + 5 + 1),
        ({"type": "object", "additionalProperties": LONG, "required": ["a"]}, 2 + 5 + BASE),
        ({"type": "array", "prefixItems": [LONG, LONG], "minItems": 1}, 2 + 1 + BASE),
        ({"type": "array", "prefixItems": [LONG], "minItems": 3, "items": {}}, 2 + 1 + BASE + 2 * 2),
        ({"type": "array", "items": {"type": "string", "minLength": 50_000}, "minItems": 2}, 2 + 2 * (1 + 50_002)),
        ({"type": ["array", "string"], "minItems": MAX_SHORTEST, "minLength": MAX_SHORTEST}, BASE),
        ({"$ref": "#/$defs/long"}, BASE),
    ],
)
def test_a_schema_is_too_complex_if_even_its_shortest_value_is_too_long(schema: dict[str, Any], length: int) -> None:
    with pytest.raises(PartError) as caught:
        prune(schema, {"long": LONG})
    assert caught.value.code == "schema_too_complex"
    assert f"{length} characters" in caught.value.message


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": ["x" * (MAX_SHORTEST - 2)]},
        {"type": "string", "minLength": MAX_SHORTEST - 2},
        {"anyOf": [LONG, {"type": "null"}]},
        {"type": ["string", "null"], "minLength": MAX_SHORTEST},
        {"type": "object", "properties": {"a": LONG}},
        {"type": "object", "patternProperties": {"^a": {}}, "additionalProperties": LONG, "required": ["a"]},
        {"type": "array", "prefixItems": [LONG], "items": LONG},
        {"type": "integer"},
        True,
    ],
)
def test_a_long_value_does_no_harm_where_a_short_one_is_allowed(schema: Any) -> None:
    assert prune(schema, {}) is schema


def test_what_no_finite_value_satisfies_is_removed_from_every_place() -> None:
    endless = {"type": "object", "properties": {"a": {"$ref": "#/$defs/e"}}, "required": ["a"]}
    gone = {"$ref": "#/$defs/e"}
    kept = {"$ref": "#/$defs/k"}
    for keyword in ("properties", "patternProperties"):
        root = prune({"type": "object", keyword: {"x": gone, "y": kept}}, {"e": endless, "k": {"type": "null"}})
        assert root[keyword] == {"x": False, "y": kept}
    for keyword in ("prefixItems", "anyOf"):
        root = prune({keyword: [gone, kept]}, {"e": endless, "k": {"type": "null"}})
        assert root[keyword] == [False, kept]
    for keyword in ("items", "additionalProperties"):
        inner: dict[str, Any] = {"type": "object", "properties": {"deep": {keyword: gone}}}
        definitions: dict[str, Any] = {"e": endless, "k": {"properties": {"n": {keyword: gone}}}}
        root = prune(inner, definitions)
        assert root["properties"]["deep"][keyword] is False
        assert definitions["e"] is False
        assert definitions["k"]["properties"]["n"][keyword] is False


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "array", "items": False, "minItems": 1},
        {"type": "array", "prefixItems": [False], "minItems": 1},
        {"anyOf": [False, False]},
        {"allOf": [{"type": "null"}, False]},
        {"type": "string", "allOf": [{"type": ["null", "integer"]}]},
        {"allOf": [{"type": ["null", "string"]}, {"type": ["string", "integer"]}, {"type": ["null", "integer"]}]},
    ],
)
def test_a_schema_that_no_value_satisfies_is_refused(schema: Any) -> None:
    with pytest.raises(PartError, match="no finite value satisfies this schema"):
        prune(schema, {})


def test_an_integer_is_a_number_where_types_are_compared() -> None:
    schema = {"type": "integer", "allOf": [{"type": "number"}]}
    assert prune(schema, {}) is schema


def test_a_reference_to_itself_is_refused_and_one_in_a_property_is_not() -> None:
    for loop in (
        {"$ref": "#/$defs/a"},
        {"anyOf": [{"$ref": "#/$defs/a"}]},
        {"allOf": [{"anyOf": [{"$ref": "#/$defs/a"}]}]},
    ):
        with pytest.raises(PartError, match="leads back to itself"):
            prune({"$ref": "#/$defs/a"}, {"a": loop})
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/a"}}}
    # Two ways to the same part are no loop.
    root = {"allOf": [{"$ref": "#/$defs/a"}, {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}]}
    assert prune(root, {"a": tree, "b": {"$ref": "#/$defs/a"}}) is root
