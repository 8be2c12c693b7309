"""What a schema says is enforced, or refused with the place where it says so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.grammar import lark_json
from edgekit.generation.grammar.keywords import REFUSED
from edgekit.generation.grammar.schema import lower_schema
from edgekit.generation.request import ResponseFormat
from tests.generation.grammar.kits import kit, text_of, walk

BYTES = "byte_level"


def takes(schema: Any, text: str) -> bool:
    """Whether an answer under a schema may be this text."""
    used = kit(BYTES)
    matcher = used.schema(schema).matcher()
    tokens = used.tokenizer.encode(text, obey_special=False)
    if matcher.fits(tokens) == len(tokens):
        for token in tokens:
            matcher.accept(token)
        return matcher.accepting
    return False


def refusal(schema: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        kit(BYTES).schema(schema)
    assert caught.value.param == "response_format"
    return caught.value


@pytest.mark.parametrize("word", REFUSED)
def test_a_word_that_is_not_enforced_is_refused_with_its_place(word: str) -> None:
    value: Any = True if word in {"uniqueItems", "nullable"} else {"type": "string"}
    error = refusal({"type": "object", "properties": {"a/b": {"anyOf": [{"type": "null"}, {word: value}]}}})
    assert error.code == "unsupported_schema"
    assert error.message.startswith(f"#/properties/a~1b/anyOf/1/{word}: ")


@pytest.mark.parametrize(
    ("schema", "place", "says"),
    [
        ({"type": "object", "properties": {"a": {"typ": "string"}}}, "#/properties/a/typ", "no such word"),
        ({"type": "string", "format": "iri"}, "#/format", "the format `iri`"),
        ({"$defs": {"x": {"not": {}}}, "$ref": "#/$defs/x"}, "#/$defs/x/not", "not enforced"),
        ({"$ref": "https://example.org/schema"}, "#/$ref", "nothing is fetched"),
        ({"$ref": "#name"}, "#/$ref", "nothing is fetched"),
        ({"type": "object", "properties": {"a": {"$id": "other"}}}, "#/properties/a/$id", "no such word"),
        ({"$schema": "https://example.org/dialect"}, "#/$schema", "dialect"),
        ({"type": "number", "multipleOf": 0.1}, "#/multipleOf", "whole numbers"),
        ({"type": "integer", "multipleOf": 100_000}, "#/multipleOf", "from 1 to 1000"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf", "0 and 1 might"),
        ({"oneOf": [{"properties": {"a": {"type": "null"}}}, {"type": "string"}]}, "#/oneOf", "0 and 1 might"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "#/oneOf", "0 and 1 might"),
        ({"type": "object", "minProperties": 2}, "#/minProperties", "not counted"),
        ({"const": 2**53 + 1}, "#/const", "exactly"),
        ({"enum": [1.0013580322265625e-05]}, "#/enum", "too many digits"),
        ({"type": "number", "maximum": 0.12345678901234567}, "#/maximum", "too many digits"),
        ({"const": "a\u0001"}, "#/const", "control character U+0001"),
        ({"type": "object", "properties": {"\x7f": {}}}, "#/properties", "control character U+007F"),
        ({"type": "object", "patternProperties": {"a": {}, "^a": {}}}, "#", "not disjoint"),
    ],
)
def test_a_refusal_names_place_and_reason(schema: Any, place: str, says: str) -> None:
    error = refusal(schema)
    assert error.code == "unsupported_schema"
    assert error.message.startswith(f"{place}: ")
    assert says in error.message


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"enum": []}, "#"),
        ({"enum": [1], "const": 2}, "#"),
        (False, "#"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "#/minimum"),
        ({"type": "integer", "minimum": 1, "maximum": 3, "multipleOf": 5}, "#/minimum"),
        ({"type": "number", "exclusiveMinimum": 1, "maximum": 1}, "#/minimum"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "#/maxLength"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "#/maxItems"),
        ({"type": "object", "required": ["a", "b"], "maxProperties": 1}, "#/maxProperties"),
        ({"type": "object", "additionalProperties": False, "minProperties": 1}, "#/minProperties"),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "string", "pattern": "^a", "const": "b"}},
                "required": ["a"],
            },
            "#",
        ),
        ({"type": "string", "pattern": "^a{5}$", "maxLength": 4}, "#"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "#"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "#"),
        ({"$ref": "#"}, "#"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "#"),
        ({"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1, "$defs": {"a": {"$ref": "#"}}}, "#"),
    ],
)
def test_a_schema_that_nothing_satisfies_is_refused(schema: Any, place: str) -> None:
    error = refusal(schema)
    assert error.code == "unsupported_schema"
    assert error.message.startswith(place)


@pytest.mark.parametrize(
    "schema",
    [
        5,
        None,
        "object",
        [],
        {"type": "text"},
        {"properties": []},
        {"anyOf": []},
        {"required": "a"},
        {"$ref": "#/$defs/none"},
    ],
)
def test_what_is_no_schema_is_an_invalid_request(schema: Any) -> None:
    assert refusal(schema).code == "invalid_request"


def test_a_part_that_only_llguidance_refuses_is_named_too() -> None:
    part = {"type": "object", "properties": {"n": {"allOf": [{"type": "integer", "maximum": 2}, {"minimum": 3}]}}}
    error = refusal({"type": "array", "items": part | {"required": ["n"]}, "minItems": 1})
    assert error.message.startswith("#/items/properties/n: it cannot be enforced")


def test_a_branch_that_nothing_finite_satisfies_is_left_out() -> None:
    endless = {"type": "object", "properties": {"a": {"$ref": "#/$defs/e"}}, "required": ["a"]}
    schema = {
        "type": "object",
        "properties": {"e": {"$ref": "#/$defs/e"}, "n": {"type": "null"}},
        "$defs": {"e": endless},
    }
    assert takes(schema, '{"n": null}')
    assert not takes(schema, '{"e": {"a": {}}}')


def test_a_name_cannot_be_written_again_in_another_spelling() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    assert takes(schema, '{"a": 1, "b": "x"}')
    assert not takes(schema, '{"a": 1, "\\u0061": "x"}')
    assert not takes(schema, '{"a": 1, "a": "x"}')


@pytest.mark.parametrize(
    "dialect", ["http://json-schema.org/draft-04/schema#", "http://json-schema.org/draft-07/schema#"]
)
def test_an_old_dialect_does_not_switch_words_off(dialect: str) -> None:
    assert takes({"$schema": dialect, "const": 5}, "5")
    assert not takes({"$schema": dialect, "const": 5}, "6")
    old = {"$schema": dialect, "type": "array", "items": [{"type": "null"}], "additionalItems": False}
    assert takes(old, "[null]")
    assert not takes(old, "[null, null]")
    exclusive = {"$schema": dialect, "type": "integer", "minimum": 3, "exclusiveMinimum": True}
    assert takes(exclusive, "4")
    assert not takes(exclusive, "3")


def test_an_object_has_no_properties_beside_those_it_names_unless_its_schema_says_so() -> None:
    named = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]}
    assert takes(named, '{"a": null, "b": 1}')
    assert not takes(named, '{"b": 1, "c": 1}')
    assert takes(named | {"additionalProperties": True}, '{"b": 1, "c": 1}')
    assert takes({"type": "object"}, '{"c": 1}')
    # Objects that are merged name their properties in several places; those that are required only come last.
    merged = {"allOf": [named, {"type": "object", "properties": {"c": {"const": 1}}}]}
    assert takes(merged, '{"c": 1, "b": 1}')


def test_integers_have_at_most_eighteen_digits() -> None:
    assert takes({"type": "integer"}, "-" + "9" * 18)
    assert not takes({"type": "integer"}, "9" * 19)
    assert takes({"type": "integer", "maximum": 2**63 - 1}, "9" * 18)


def test_properties_without_a_type_mean_an_object() -> None:
    assert takes({"properties": {"a": {}}}, '{"a": [1]}')
    assert not takes({"properties": {"a": {}}}, "1")


def test_a_schema_of_pydantics_is_enforced() -> None:
    cat = {
        "properties": {"kind": {"const": "cat", "title": "Kind", "type": "string"}},
        "required": ["kind"],
        "type": "object",
    }
    dog = {
        "properties": {"kind": {"const": "dog", "title": "Kind", "type": "string"}},
        "required": ["kind"],
        "type": "object",
    }
    schema = {
        "$defs": {"Cat": cat, "Dog": dog},
        "properties": {
            "pet": {
                "discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "kind"},
                "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            },
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "born": {"format": "date", "type": "string"},
        },
        "required": ["pet", "born"],
        "title": "Owner",
        "type": "object",
    }
    assert takes(schema, '{"pet": {"kind": "dog"}, "note": null, "born": "2024-02-29"}')
    assert not takes(schema, '{"pet": {"kind": "fox"}, "born": "2024-02-29"}')
    assert not takes(schema, '{"pet": {"kind": "dog"}, "born": "2023-02-29"}')


@pytest.mark.parametrize("text", ["", "  ", "\n", "\n    ", "\r\n  ", "\n\n", "\n" + " " * 49])
def test_whitespace_is_one_blank_or_one_line_break_with_indentation(text: str) -> None:
    fits = text not in {"  ", "\n\n"} and len(text) < 49
    assert takes({"type": "array"}, f"[{text}1,{text}2{text}]") == fits


def test_json_begins_and_ends_without_whitespace() -> None:
    assert not takes({"type": "object"}, " {}")
    assert not takes({"type": "object"}, "{}\n")


def test_json_object_is_any_object() -> None:
    used = kit(BYTES)
    grammar = used.compiler.compile(ResponseFormat("json_object"))
    ended = 0
    for seed in range(30):
        tokens, end = walk(used, grammar, seed)
        if end:
            ended += 1
            assert isinstance(json.loads(text_of(used, tokens)), dict)
    assert ended > 20


def test_an_answer_ends_by_itself_where_all_of_it_is_bounded() -> None:
    used = kit(BYTES)
    item = {"type": "object", "properties": {"s": {"type": "string", "maxLength": 8}, "n": {"type": "integer"}}}
    grammar = used.schema({"type": "array", "items": item, "maxItems": 4})
    # Four objects of 6 places for whitespace, 49 bytes each at most, two names, a text of 8 characters and 18 digits.
    for seed in range(40):
        tokens, ended = walk(used, grammar, seed, most=4 * (12 * 50 + 80), hurry=0)
        assert ended, text_of(used, tokens)


def test_a_schema_that_is_not_wanted_any_more_may_change() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "null"}}}
    lowered = lower_schema(schema, param="x")
    schema["properties"]["a"]["type"] = "string"
    assert lowered.root["properties"]["a"] == {"type": "null"}


def test_the_path_begins_with_what_the_caller_calls_the_schema() -> None:
    with pytest.raises(RequestError) as caught:
        lark_json({"type": "array", "uniqueItems": True}, param="tools", path="tools[3].parameters")
    assert caught.value.message.startswith("tools[3].parameters/uniqueItems: ")
    assert caught.value.param == "tools"
