"""Every part of a schema is enforced, or refused with its path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.grammar import lark_json
from edgekit.generation.grammar.keywords import UNSUPPORTED
from edgekit.generation.grammar.schema import (
    MAX_CONSTANTS,
    MAX_DEPTH,
    MAX_NESTING,
    MAX_SCHEMA_BYTES,
    MAX_SUBSCHEMAS,
    MAX_TOTAL_DEPTH,
    lower_schema,
)
from edgekit.generation.types import ResponseFormat
from tests.generation.grammar.kits import kit, text_of, walk

BYTES = "byte_level"


def takes(schema: Any, text: str) -> bool:
    """Whether output under a schema may be this text."""
    return bool(taken(schema, [text]))


def taken(schema: Any, texts: list[str]) -> list[str]:
    """The texts that output under a schema may be."""
    used = kit(BYTES)
    grammar = used.schema(schema)
    found = []
    for text in texts:
        matcher = grammar.matcher()
        tokens = used.tokenizer.encode(text, obey_special=False)
        if matcher.fits(tokens) == len(tokens):
            for token in tokens:
                matcher.accept(token)
            if matcher.accepting:
                found.append(text)
    return found


def refusal(schema: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        kit(BYTES).schema(schema)
    assert caught.value.param == "response_format"
    return caught.value


def path_in(error: RequestError) -> str:
    """The path in the schema that a message begins with; "" if it is about the whole schema and names none."""
    head, found, _ = error.message.partition("`: ")
    return head.removeprefix("`response_format.") if found else ""


@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_an_unsupported_keyword_is_refused_with_its_path(keyword: str) -> None:
    error = refusal({"type": "object", "properties": {"a/b": {"anyOf": [{"type": "null"}, {keyword: {}}]}}})
    assert error.code == "unsupported_schema"
    assert error.message.startswith(
        f'`response_format.properties["a/b"].anyOf[1].{keyword}`: `{keyword}` is not enforced'
    )


@pytest.mark.parametrize(
    ("schema", "path", "says"),
    [
        ({"type": "object", "properties": {"a": {"typ": "string"}}}, "properties.a.typ", "unknown keyword"),
        ({"type": "integer", "maximun": 5}, "maximun", "unknown keyword"),
        ({"type": "string", "format": "datetime"}, "format", "the format `datetime` is unknown"),
        ({"$defs": {"x": {"contains": {}}}, "$ref": "#/$defs/x"}, "$defs.x.contains", "not enforced"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems", "only where `items` has an `enum`"),
        ({"not": {"patternProperties": {"a": True}}}, "not", "the opposite of this schema"),
        ({"propertyNames": {"format": "date"}}, "propertyNames", "is enforced only with"),
        ({"$ref": "https://example.org/schema"}, "$ref", "nothing is fetched"),
        ({"$ref": "#name"}, "$ref", "nothing is fetched"),
        ({"properties": {"a": {"$id": "b", "items": {"$ref": "#"}}}}, "properties.a.$id", "a part with references"),
        ({"$schema": "https://example.org/dialect"}, "$schema", "dialect"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf", "0 and 1 might"),
        ({"oneOf": [{"type": "string", "pattern": "a"}, {"type": "string", "pattern": "b"}]}, "oneOf", "0 and 1"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "oneOf", "0 and 1 might"),
        ({"type": "object", "minProperties": 2}, "minProperties", "not counted"),
        ({"const": 2**53 + 1}, "const", "exactly"),
        ({"enum": [1.0013580322265625e-05]}, "enum", "too many digits"),
        ({"type": "number", "maximum": 0.12345678901234567}, "maximum", "too many digits"),
        ({"properties": {"a": {"const": "\u0001"}}, "additionalProperties": {}}, "", "control character U+0001"),
        ({"properties": {"\x7f": {}}, "additionalProperties": True}, "", "control character U+007F"),
        ({"type": "object", "patternProperties": {"a": {}, "^a": {}}}, "", "not disjoint"),
    ],
)
def test_a_refusal_names_path_and_reason(schema: Any, path: str, says: str) -> None:
    error = refusal(schema)
    assert error.code == "unsupported_schema"
    assert path_in(error) == path
    assert says in error.message


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"enum": []}, "enum"),
        ({"enum": [1], "const": 2}, "const"),
        (False, ""),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum"),
        ({"type": "integer", "minimum": 1, "maximum": 3, "multipleOf": 5}, "minimum"),
        ({"type": "number", "exclusiveMinimum": 1, "maximum": 1}, "minimum"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "maxLength"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems"),
        ({"type": "object", "required": ["a", "b"], "maxProperties": 1}, "maxProperties"),
        ({"type": "object", "additionalProperties": False, "minProperties": 1}, "minProperties"),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "string", "pattern": "^a", "const": "b"}},
                "required": ["a"],
            },
            "properties.a",
        ),
        ({"type": "string", "pattern": "^a{5}$", "maxLength": 4}, ""),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, ""),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, ""),
        ({"$ref": "#"}, ""),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, ""),
        ({"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1, "$defs": {"a": {"$ref": "#"}}}, ""),
    ],
)
def test_a_schema_that_no_value_satisfies_is_refused(schema: Any, path: str) -> None:
    error = refusal(schema)
    assert error.code == "unsupported_schema"
    assert path_in(error) == path
    assert "#" not in error.message


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
def test_a_value_that_is_not_a_schema_is_an_invalid_request(schema: Any) -> None:
    assert refusal(schema).code == "invalid_request"


@pytest.mark.parametrize("at", ["#/$defs/1", "#/$defs/2", "#/$defs/-1", "#/$defs/a", "#/$defs/", "#/$defs/0/a", "#/b"])
def test_a_reference_without_a_target_is_an_invalid_request(at: str) -> None:
    error = refusal({"$ref": at, "$defs": [{"enum": [True]}]})
    assert (error.code, error.message) == (
        "invalid_request",
        f"`response_format.$ref`: the reference {at} has no target",
    )
    assert takes({"$ref": "#/$defs/0", "$defs": [{"enum": [True]}]}, "true")


def test_a_part_that_only_llguidance_refuses_is_named_too() -> None:
    part = {"type": "object", "properties": {"n": {"allOf": [{"type": "integer", "maximum": 2}, {"minimum": 3}]}}}
    error = refusal({"type": "array", "items": part | {"required": ["n"]}, "minItems": 1})
    assert error.message.startswith("`response_format.items.properties.n`: the grammar cannot be enforced")


def test_a_branch_that_no_finite_value_satisfies_is_removed() -> None:
    endless = {"type": "object", "properties": {"a": {"$ref": "#/$defs/e"}}, "required": ["a"]}
    schema = {
        "type": "object",
        "properties": {"e": {"$ref": "#/$defs/e"}, "n": {"type": "null"}},
        "$defs": {"e": endless},
    }
    assert takes(schema, '{"n": null}')
    assert not takes(schema, '{"e": {"a": {}}}')


def test_a_name_cannot_be_repeated_in_another_spelling() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    assert takes(schema, '{"a": 1, "b": "x"}')
    assert not takes(schema, '{"a": 1, "\\u0061": "x"}')
    assert not takes(schema, '{"a": 1, "a": "x"}')


@pytest.mark.parametrize(
    "dialect", ["http://json-schema.org/draft-04/schema#", "http://json-schema.org/draft-07/schema#"]
)
def test_an_old_dialect_does_not_disable_keywords(dialect: str) -> None:
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
    # Merged objects name their properties in several schemas; those that are only required come last.
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
    # Four objects with 6 positions for at most 49 bytes of whitespace, two names, a string of 8 characters, 18 digits.
    for seed in range(40):
        tokens, ended = walk(used, grammar, seed, max_tokens=4 * (12 * 50 + 80), hurry=0)
        assert ended, text_of(used, tokens)


def test_a_schema_may_change_after_it_is_lowered() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "null"}}}
    lowered = lower_schema(schema, param="x")
    schema["properties"]["a"]["type"] = "string"
    assert lowered.root["properties"]["a"] == {"type": "null"}


def test_where_there_are_several_schemas_the_whole_one_is_named_too() -> None:
    for schema, path in (
        ({"type": "array", "contains": True}, "tools[3].parameters.contains"),
        (False, "tools[3].parameters"),
    ):
        with pytest.raises(RequestError) as caught:
            lark_json(schema, param="tools", path="tools[3].parameters")
        assert caught.value.message.startswith(f"`{path}`: ")
        assert caught.value.param == "tools"


def test_an_error_about_a_reference_names_the_part_that_it_leads_to() -> None:
    error = refusal({"$ref": "#/x-list/1", "x-list": [{}, {"contains": {}}]})
    assert error.message.startswith("`response_format.x-list[1].contains`: ")


def within(levels: int, part: Any) -> Any:
    """A part inside so many objects."""
    for _ in range(levels):
        part = {"properties": {"a": part}}
    return part


def lists(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def chained(count: int) -> Any:
    """A chain of so many definitions, each two levels deep."""
    parts: dict[str, Any] = {f"d{at}": {"items": {"$ref": f"#/$defs/d{at + 1}"}} for at in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": parts | {f"d{count}": True}}


QUOTED = len(json.dumps({"title": ""}))
# (largest, larger): the largest schema within a limit, and one beyond it.
LIMITS: dict[str, tuple[Any, Any]] = {
    "bytes": ({"title": "x" * (MAX_SCHEMA_BYTES - QUOTED)}, {"title": "x" * (MAX_SCHEMA_BYTES - QUOTED + 1)}),
    "depth": (within(MAX_DEPTH, {"type": "null"}), within(MAX_DEPTH + 1, {"type": "null"})),
    "parts": ({"anyOf": [True] * (MAX_SUBSCHEMAS - 1)}, {"anyOf": [True] * MAX_SUBSCHEMAS}),
    "constants": (
        {"anyOf": [{"enum": list(range(MAX_CONSTANTS - 2))}, {"enum": [[1]]}]},
        {"anyOf": [{"enum": list(range(MAX_CONSTANTS - 2))}, {"enum": [[1, 2]]}]},
    ),
    "nesting": ({"default": lists(MAX_NESTING - 2)}, {"default": lists(MAX_NESTING - 1)}),
    "references": (chained(MAX_TOTAL_DEPTH // 2 - 1), chained(MAX_TOTAL_DEPTH // 2)),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_schema_may_be_as_large_as_a_limit_and_not_larger(limit: str) -> None:
    largest, larger = LIMITS[limit]
    assert lower_schema(largest, param="response_format") is not None
    with pytest.raises(RequestError) as caught:
        lower_schema(larger, param="response_format")
    assert caught.value.code == "schema_too_complex"


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"$ref": 5}, "$ref"),
        ({"enum": 5}, "enum"),
        ({"allOf": {}}, "allOf"),
        ({"oneOf": []}, "oneOf"),
        ({"type": []}, ""),
        ({"type": ["null", 5]}, ""),
        ({"type": "object", "properties": {"a": {"items": 5}}}, "properties.a.items"),
        ({"const": float("nan")}, ""),
        ({"const": {1, 2}}, ""),
    ],
)
def test_a_malformed_part_is_an_invalid_request_with_its_path(schema: Any, path: str) -> None:
    error = refusal(schema)
    assert error.code == "invalid_request"
    assert path_in(error) == path


@pytest.mark.parametrize(
    ("schema", "allowed"),
    [
        ({"type": ["integer", "null"]}, ["1", "null"]),
        ({"type": ["null", "null"]}, ["null"]),
        ({"const": 1, "type": ["integer", "string"]}, ["1"]),
        ({"enum": [1, "a", 1.0]}, ["1", '"a"']),
        ({"enum": [1, 2], "const": 1.0}, ["1"]),
        ({"maximum": 1}, ["1"]),
        ({"minLength": 1}, ['"a"']),
        ({"minItems": 0}, ["[]"]),
        ({"maxProperties": 0}, ["{}"]),
        ({"title": "anything"}, ["1", '"a"', "null", "[]", "{}", "true"]),
        (True, ["1", '"a"', "null", "[]", "{}", "true"]),
        ({"uniqueItems": False, "type": "null"}, ["null"]),
        ({"allOf": [{"type": "null"}]}, ["null"]),
        ({"allOf": [{"type": ["null", "integer"]}, {"type": ["null", "string"]}]}, ["null"]),
        ({"anyOf": [{"type": "null"}, {"const": "a"}]}, ['"a"', "null"]),
        ({"type": ["integer", "string"], "anyOf": [{"type": "string"}, {"type": "null"}]}, ['"a"']),
        ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "null"}}}, ["null"]),
        ({"$ref": "#/$defs/a~0b", "$defs": {"a~b": {"type": "null"}}}, ["null"]),
        ({"$defs": {"a": False}, "type": "null"}, ["null"]),
        ({"anyOf": [{"type": "null"}, False]}, ["null"]),
        ({"properties": {"a": {"$id": "x", "type": "null"}}, "type": ["object", "null"]}, ["null", "{}"]),
        ({"properties": {"a": {"id": 5}}, "type": ["object", "null"]}, ["null", "{}"]),
    ],
)
def test_a_schema_allows_the_values_of_its_types_and_constants(schema: Any, allowed: list[str]) -> None:
    assert taken(schema, ["1", '"a"', "null", "[]", "{}", "true"]) == allowed
