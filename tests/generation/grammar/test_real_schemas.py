"""What real schemas use: annotations, keywords that are rewritten, and values that are narrowed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edgekit.generation.grammar.keywords import ENFORCED, FORMATS
from edgekit.generation.grammar.typos import meant
from tests.generation.grammar.kits import kit, text_of, walk
from tests.generation.grammar.test_schema import BYTES, refusal, takes

AB: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}}
ABC: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}, "c": {}}}

# A schema, values that it must allow, and values that it must not.
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    ({"type": "integer", "createOnlyProperties": ["/a"], "markdownDescription": "x", "cli": {}}, [1], ["a"]),
    ({"type": "string", "format": "markdown"}, ["a"], [1]),
    ({"type": "string", "format": "guid"}, ["a"], [1]),
    ({"type": "object", "properties": {"a": {"$id": "#/properties/a", "type": "null"}}}, [{"a": None}], [{"a": 1}]),
    ({"type": "string", "nullable": True}, ["a"], [None]),
    ({"$schema": "https://json-schema.org/draft-07/schema#", "const": 5}, [5], [6]),
    ({"$schema": "https://json-schema.org/draft/2020-12/schema#", "const": 5}, [5], [6]),
    ({"$schema": "http://json-schema.org/draft-04/schema", "const": 5}, [5], [6]),
    (
        {"type": "object", "propertyNames": {"pattern": "^x-"}, "additionalProperties": {"type": "null"}},
        [{"x-a": None}, {}],
        [{"a": None}, {"x-a": 1}],
    ),
    ({"type": "object", "propertyNames": {"enum": ["a", "b"]}}, [{"a": 1}, {"b": 1}], [{"c": 1}]),
    ({"type": "object", "propertyNames": {"maxLength": 2}}, [{"ab": 1}], [{"abc": 1}]),
    (AB | {"propertyNames": {"pattern": "^a"}}, [{"a": 1}, {}], [{"b": None}]),
    (
        {
            "$ref": "#/$defs/o",
            "$defs": {
                "o": {"type": "object", "propertyNames": {"$ref": "#/$defs/n"}},
                "n": {"type": "string", "pattern": "^[a-z]$"},
            },
        },
        [{"a": 1}],
        [{"ab": 1}],
    ),
    ({"type": "number", "multipleOf": 0.01}, [0.07, 3, -1.5], [0.071, 1.005]),
    ({"type": "number", "multipleOf": 2.5, "minimum": 1}, [2.5, 5, 7.5], [0, 2, -2.5]),
    ({"type": "integer", "multipleOf": 0.5}, [1, 7], [0.5]),
    ({"type": "integer", "multipleOf": 100_000}, [0, 100_000, -300_000], [50_000, 1]),
    ({"type": "integer", "multipleOf": 86_400, "minimum": 1}, [86_400, 172_800], [0, 1, 86_401]),
    ({"type": ["number", "null"], "multipleOf": 12345.678}, [12345.678, 0, None], [1, "a"]),
    (
        {"type": "array", "items": {"enum": ["x", "y", 1]}, "uniqueItems": True},
        [[], ["x"], ["y", "x"], [1, "x", "y"]],
        [["x", "x"], ["z"]],
    ),
    (
        {"type": ["array", "null"], "items": {"type": "boolean"}, "uniqueItems": True},
        [None, [True, False]],
        [[True, True], ["x"]],
    ),
    (
        {
            "type": "array",
            "items": {"$ref": "#/$defs/e"},
            "uniqueItems": True,
            "$defs": {"e": {"enum": list(range(40))}},
        },
        [[], [1], [39, 0]],
        [[1, 1]],
    ),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, [[], [1]], [[1, 1]]),
    ({"type": "array", "uniqueItems": False}, [[1, 1]], [1]),
    (ABC | {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1}], [{}, {"a": 1, "b": 1}]),
    (
        ABC | {"oneOf": [{"required": ["a", "b"]}, {"required": ["c"]}]},
        [{"a": 1, "b": 1}, {"c": 1}, {"a": 1, "c": 1}],
        [{"a": 1, "b": 1, "c": 1}, {"a": 1}],
    ),
    ({"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]}, [1, 3], [2]),
    ({"oneOf": [{"properties": {"a": {"type": "null"}}}, {"type": "string"}]}, [{"a": None}], ["x"]),
    (
        {
            "oneOf": [
                {"type": "object", "properties": {"a": {"type": "string"}}},
                {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
            ]
        },
        [{"a": "x"}],
        [{"b": None}, {"a": "x", "b": None}],
    ),
    (
        {"oneOf": [{"properties": {name: {}}, "additionalProperties": False, "type": "object"} for name in "abc"]},
        [{"a": 1}, {"b": 1}, {"c": 1}],
        [{}, {"a": 1, "b": 1}, {"d": 1}, 1],
    ),
    (
        {
            "oneOf": [{"$ref": "#/$defs/a"}, {"type": "object", "properties": {"a": {}, "b": {}}}],
            "$defs": {"a": {"properties": {"a": {}}, "additionalProperties": False}},
        },
        [{"b": 1}, {"a": 1, "b": 1}],
        [{}, {"a": 1}],
    ),
    ({"not": {"type": "string"}}, [1, None, []], ["a"]),
    ({"type": "string", "not": {"enum": ["ab", "b"]}}, ["", "a", "abc", "c", "ba"], ["ab", "b"]),
    ({"type": "string", "not": {"const": "\n"}}, ["", "\n\n"], ["\n"]),
    ({"type": "integer", "not": {"minimum": 5}}, [4, -9], [5, 6]),
    ({"type": "array", "not": {"maxItems": 0}}, [[1]], [[]]),
    (AB | {"not": {"required": ["a"]}}, [{}, {"b": None}], [{"a": 1}]),
    (AB | {"not": {"required": ["a", "b"]}}, [{"a": 1}, {"b": None}], [{"a": 1, "b": None}]),
    (AB | {"not": {"properties": {"a": {"maximum": 3}}, "required": ["a"]}}, [{"a": 4}, {}], [{"a": 3}]),
    (
        ABC | {"if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"required": ["b"]}},
        [{"a": 1, "b": 0}, {"a": 2}, {}],
        [{"a": 1}],
    ),
    (ABC | {"dependentRequired": {"a": ["b"]}}, [{"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    (ABC | {"dependencies": {"a": {"required": ["b"]}}}, [{"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    # Keywords about objects say nothing about other values, wherever the types of a place are known.
    ({"type": "boolean", "dependencies": {"a": ["b"]}}, [True, False], [{"a": 1}, 1]),
    ({"type": ["object", "null"], "dependentRequired": {"a": ["b"]}}, [None, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    ({"dependentRequired": {"a": ["b"]}}, [{}, {"a": 1, "b": 1}], [{"a": 1}]),
    ({"$ref": "#/$defs/ab", "maxItems": 20, "$defs": {"ab": AB}}, [{"a": 1}, {}], [{"a": "x"}, [], 1]),
    ({"maxItems": 1, "$ref": "#/$defs/r", "$defs": {"r": {"required": ["a"]}}}, [{"a": 1}, [1]], [{}, [1, 1]]),
    ({"type": ["object", "string"], "allOf": [{"required": ["a"]}]}, ["x", {"a": 1}], [{}, 1]),
    (AB | {"type": ["object", "null"], "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, [None, {"a": 1}], [{}, 1]),
    ({"allOf": [{"type": ["array", "null"]}, {"minItems": 1}, {"maxLength": 3}]}, [None, [1]], [[], {}, 1, "x"]),
    ({"allOf": [{"required": ["a"]}, {"minItems": 1}]}, [{"a": 1}, [1]], [{}, []]),
    ({"required": ["a"], "oneOf": [{"type": "object"}, {"type": "string"}]}, [{"a": 1}, "x"], [{}, 1]),
    (
        {
            "type": ["object", "null"],
            "$ref": "#/$defs/r",
            "$defs": {"r": {"$ref": "#/$defs/s"}, "s": {"required": ["a"]}},
        },
        [None, {"a": 1}],
        [{}, 1],
    ),
    (
        ABC | {"type": ["object", "integer"], "if": {"required": ["a"]}, "then": {"required": ["b"]}},
        [5, {"a": 1, "b": 0}, {}],
        [{"a": 1}, "x"],
    ),
    (
        {"type": ["object", "null"], "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}],
        [None, {}],
    ),
    # A keyword that constrains nothing tells nothing about the type.
    ({"additionalProperties": True, "additionalItems": True}, [1, "x", None, [], {"a": 1}], []),
    ({"additionalProperties": {}, "type": "null"}, [None], [{}]),
    ({"minLength": 2, "minimum": 3}, ["ab", 3, 4.5], ["a", 2]),
    ({"minimum": 3, "format": "int32"}, [3], [2, 2**31]),
    ({"then": {"const": 1}, "else": {"const": 2}, "type": "integer"}, [3], ["a"]),
    ({"type": "string", "maxLength": 10**9}, ["a" * 50], [1]),
    ({"type": "array", "maxItems": 10**6, "items": {"type": "null"}}, [[None] * 5], [[1]]),
    ({"const": "a\u0001b"}, ["a\u0001b"], ["a", "a\u0001"]),
    ({"type": "object", "properties": {"\u0001": {"type": "null"}}}, [{"\u0001": None}], [{"\u0001": 1}]),
    ({"type": "object", "minProperties": 1, "properties": {"a": {}, "b": {}}}, [{"a": 1}], [{}]),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES)
def test_a_schema_allows_valid_values_and_no_others(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    judge = Draft202012Validator({key: value for key, value in schema.items() if key != "$schema"})
    for value in valid:
        if "dependencies" not in schema and "multipleOf" not in schema:
            assert judge.is_valid(value), value
        assert takes(schema, json.dumps(value, ensure_ascii=False)), value
    for value in invalid:
        assert not takes(schema, json.dumps(value, ensure_ascii=False)), value


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES)
def test_random_answers_satisfy_it(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    used = kit(BYTES)
    grammar = used.schema(schema)
    judge = Draft202012Validator({key: value for key, value in schema.items() if key not in {"$schema", "multipleOf"}})
    for seed in range(6):
        tokens, ended = walk(used, grammar, seed, max_tokens=300)
        if ended:
            value = json.loads(text_of(used, tokens))
            assert judge.is_valid(value), value
            assert value not in invalid or value in valid


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("maximun", "maximum"),
        ("minLenght", "minLength"),
        ("additional_properties", "additionalProperties"),
        ("requried", "required"),
        ("propertes", "properties"),
        ("AnyOf", "anyOf"),
        ("typ", "type"),
        ("ref", "$ref"),
        ("itmes", "items"),
        *(
            (word, None)
            for word in ("version", "createOnlyProperties", "cli", "handlers", "typeName", "enumNames", "x")
        ),
        *(
            (word, None)
            for word in ("instanceof", "markdownDescription", "deprecatedProperties", "writeOnlyProperties")
        ),
    ],
)
def test_a_misspelt_keyword_is_told_from_an_annotation(word: str, name: str | None) -> None:
    assert meant(word, ENFORCED) == name


def test_options_that_differ_only_by_being_closed_are_kept_apart_when_they_are_merged() -> None:
    a = {"type": "object", "properties": {"a": {"type": "string"}}}
    b = {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"], "additionalProperties": False}
    schema = {"oneOf": [a, b, a | {"required": ["a"]}]}
    assert not takes(schema, '{"b": null}')
    assert not takes(schema, '{"a": "x"}')
    assert not takes(schema, '{"a": "x", "b": null}')
    assert takes(schema, "{}")


def test_a_misspelt_keyword_or_format_is_refused_with_the_one_meant() -> None:
    assert refusal({"type": "integer", "maximun": 5}).hint == "did you mean `maximum`?"
    assert refusal({"type": "string", "format": "date_time"}).hint == "did you mean `date-time`?"
    assert meant("markdown", FORMATS) is None


@pytest.mark.parametrize("distant", [{"allOf": [{"type": "null"}, {}]}, {"type": "null"}])
def test_whether_an_object_is_closed_does_not_depend_on_a_distant_part(distant: Any) -> None:
    schema = {"type": "object", "properties": {"o": AB, "x": distant}}
    assert takes(schema, '{"o": {"a": 1}, "x": null}')
    assert not takes(schema, '{"o": {"c": 1}}')
    assert not takes(schema, '{"z": 1}')


def test_a_definition_is_open_only_where_it_is_merged() -> None:
    merged = {"allOf": [{"$ref": "#/$defs/ab"}, {"properties": {"c": {}}, "type": "object"}]}
    schema = {"type": "object", "properties": {"p": {"$ref": "#/$defs/ab"}, "m": merged}, "$defs": {"ab": AB}}
    assert takes(schema, '{"p": {"a": 1}, "m": {"a": 1, "c": 2}}')
    assert not takes(schema, '{"p": {"c": 1}}')


@pytest.mark.parametrize("text", ['"\\u00e9"', '"\\u0041"', '"\\ud83d\\ude00"', '"\\u0022"', '"\\u0001"'])
def test_a_string_may_have_numeric_escapes(text: str) -> None:
    assert takes({"type": "string"}, text)
    assert takes({"type": "object", "properties": {"a": {"type": "string"}}}, f'{{"a": {text}}}')
    assert not takes({"type": "string"}, '"\\ud83d"')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": True},
        {"type": "object", "properties": {"a": {"const": 1}}, "patternProperties": {"^b": {}}},
        {"type": "object", "patternProperties": {"^a": {"const": 1}}},
        {"allOf": [{"type": "object", "properties": {"a": {"const": 1}}}, {"type": "object"}]},
        {
            "allOf": [{"type": "object", "properties": {"a": {"const": 1}}}, {"$ref": "#/$defs/o"}],
            "$defs": {"o": {"type": "object"}},
        },
        {"type": "object", "properties": {"a": {"const": 1}}, "anyOf": [{"minProperties": 0}, {"required": ["a"]}]},
    ],
)
def test_an_escape_gives_no_name_a_second_spelling(schema: Any) -> None:
    assert not takes(schema, '{"\\u0061": 2}')
    assert takes(schema, '{"a": 1}')


def test_a_schema_of_300_kilobytes_is_taken() -> None:
    parts = {f"p{at}": {"type": "string", "description": "x" * 250} for at in range(900)}
    assert 250_000 < len(json.dumps(parts)) < 300_000
    assert takes({"type": "object", "properties": parts}, '{"p7": "a"}')
