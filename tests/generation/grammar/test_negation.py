"""The opposite of a schema allows no value that the schema allows; jsonschema is the judge."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edgekit.generation.grammar.negation import MAX_DEPTH
from tests.generation.grammar.test_schema import path_in, refusal, taken

VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 4, 5, 6, 4.5, 5.5),
    *("", "a", "ab", "abc", "b"),
    *([], [1], ["a"], [1, 2], ["a", "b", "c"]),
    *({}, {"a": 1}, {"a": "x"}, {"b": 1}, {"a": 1, "b": 1}),
]

# A schema, and those of `VALUES` that it allows.
CASES: list[tuple[dict[str, Any], list[Any]]] = [
    ({"type": "string", "not": {"minLength": 1}}, [""]),
    ({"type": "string", "not": {"minLength": 2}}, ["", "a", "b"]),
    ({"type": "string", "not": {"maxLength": 1}}, ["ab", "abc"]),
    ({"type": "array", "not": {"minItems": 1}}, [[]]),
    ({"type": "array", "not": {"minItems": 2}}, [[], [1], ["a"]]),
    ({"type": "array", "not": {"maxItems": 1}}, [[1, 2], ["a", "b", "c"]]),
    ({"type": "object", "not": {"minProperties": 1}}, [{}]),
    ({"type": "object", "not": {"maxProperties": 0}}, [{"a": 1}, {"a": "x"}, {"b": 1}, {"a": 1, "b": 1}]),
    ({"type": "number", "not": {"minimum": 5}}, [-1, 0, 1, 2, 3, 4, 4.5]),
    ({"type": "number", "not": {"maximum": 5}}, [6, 5.5]),
    ({"type": "number", "not": {"exclusiveMinimum": 5}}, [-1, 0, 1, 2, 3, 4, 5, 4.5]),
    ({"type": "number", "not": {"exclusiveMaximum": 5}}, [5, 6, 5.5]),
    ({"type": "array", "not": {"items": {"type": "integer"}}}, [["a"], ["a", "b", "c"]]),
    ({"type": "array", "not": {"items": False}}, [[1], ["a"], [1, 2], ["a", "b", "c"]]),
    ({"type": ["string", "null"], "not": {"anyOf": [{"const": "a"}, {"type": "null"}]}}, ["", "ab", "abc", "b"]),
    ({"type": ["string", "null"], "not": {"allOf": [{"type": "string"}, {"minLength": 2}]}}, [None, "", "a", "b"]),
    ({"type": "string", "not": {"not": {"const": "a"}}}, ["a"]),
    ({"type": "boolean", "not": {"const": True}}, [False]),
    ({"type": "boolean", "not": {"const": False}}, [True]),
    ({"type": ["boolean", "null"], "not": {"enum": [True, False]}}, [None]),
    ({"type": ["boolean", "string"], "not": {"type": "string"}}, [True, False]),
    ({"type": ["boolean", "string", "null"], "not": {"type": ["string", "null"]}}, [True, False]),
    ({"type": "string", "not": {"const": ""}}, ["a", "ab", "abc", "b"]),
    ({"type": "string", "not": {"enum": ["a", "abc"]}}, ["", "ab", "b"]),
    ({"type": "number", "not": {"enum": [2, 4]}}, [-1, 0, 1, 5, 6, 4.5, 5.5]),
    ({"type": "object", "not": {"required": ["a"]}}, [{}, {"b": 1}]),
    ({"type": "object", "not": {"properties": {"a": {"type": "integer"}}}}, [{"a": "x"}]),
    ({"not": {"$ref": "#/$defs/n"}, "type": "integer", "$defs": {"n": {"minimum": 3}}}, [-1, 0, 1, 2]),
    (
        {
            "type": ["string", "null", "array"],
            "if": {"type": "string"},
            "then": {"maxLength": 1},
            "else": {"const": None},
        },
        [None, "", "a", "b"],
    ),
    ({"type": ["string", "null"], "if": {"type": "string"}, "then": {"maxLength": 1}}, [None, "", "a", "b"]),
    ({"type": ["string", "null"], "if": {"type": "string"}, "else": False}, ["", "a", "ab", "abc", "b"]),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 1}]),
    ({"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}, [{}, {"b": 1}, {"a": 1, "b": 1}]),
    (
        {"type": "object", "dependentSchemas": {"a": {"properties": {"a": {"type": "string"}}}}},
        [{}, {"a": "x"}, {"b": 1}],
    ),
]


@pytest.mark.parametrize(("schema", "allowed"), CASES)
def test_what_is_forbidden_is_not_allowed_and_the_rest_is(schema: dict[str, Any], allowed: list[Any]) -> None:
    found = [json.loads(text) for text in taken(schema, [json.dumps(value) for value in VALUES])]
    judge = Draft202012Validator(schema)
    assert [value for value in found if not judge.is_valid(value)] == []
    assert list(map(repr, found)) == [repr(value) for value in VALUES if repr(value) in set(map(repr, allowed))]


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"not": 5}, "not"),
        ({"type": "object", "dependentRequired": ["a"]}, "dependentRequired"),
        ({"type": "object", "dependentRequired": {"a": [1]}}, "dependentRequired"),
        ({"type": "object", "dependencies": "a"}, "dependencies"),
    ],
)
def test_a_malformed_condition_is_an_invalid_request(schema: dict[str, Any], path: str) -> None:
    error = refusal(schema)
    assert (error.code, path_in(error)) == ("invalid_request", path)


@pytest.mark.parametrize(
    "forbidden",
    [
        {"minLength": 0},
        {"items": True},
        {"pattern": "^a"},
        {"enum": []},
        {"minimum": 5, "exclusiveMinimum": True},
        {"maximum": 5, "exclusiveMaximum": True},
    ],
)
def test_what_has_no_opposite_cannot_be_forbidden(forbidden: dict[str, Any]) -> None:
    error = refusal({"type": ["string", "array", "number"], "not": forbidden})
    assert (error.code, path_in(error)) == ("unsupported_schema", "not")


def test_what_allows_everything_leaves_nothing_when_it_is_forbidden() -> None:
    assert "no finite value" in refusal({"not": {"title": "anything"}}).message
    assert "no finite value" in refusal({"not": True}).message


def test_a_reference_disables_what_stands_next_to_it_as_in_old_drafts() -> None:
    schema = {"type": "integer", "not": {"$ref": "#/$defs/n", "maximum": 0}, "$defs": {"n": {"minimum": 3}}}
    assert taken(schema, ["-1", "2", "3"]) == ["-1", "2"]


def test_an_opposite_is_found_up_to_a_depth() -> None:
    def within(levels: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string"}
        for _ in range(levels):
            schema = {"allOf": [schema]}
        return {"type": ["string", "null"], "not": schema}

    assert taken(within(MAX_DEPTH - 1), ["null", '"a"']) == ["null"]
    assert refusal(within(MAX_DEPTH)).code == "unsupported_schema"


def test_a_part_whose_opposite_cannot_be_described_is_left_out() -> None:
    schema = {"type": "object", "not": {"properties": {"a": {"pattern": "^a"}, "b": {"const": None}}}}
    assert taken(schema, ["{}", '{"a":"b"}', '{"b":null}', '{"b":1}']) == ['{"b":1}']
