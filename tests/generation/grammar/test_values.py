"""Keywords about objects, arrays, strings and numbers, at their exact limits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgekit.generation.grammar.values import lower_string
from tests.generation.grammar.test_schema import path_in, refusal, taken, takes

THREE: dict[str, Any] = {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}}


def test_a_number_format_includes_its_limits() -> None:
    schema: dict[str, Any] = {"type": "integer", "format": "int32"}
    low, high = -(2**31), 2**31 - 1
    for value, allowed in ((low, True), (high, True), (low - 1, False), (high + 1, False)):
        assert takes(schema, str(value)) is allowed
    # A tighter limit of its own counts; a looser one does not.
    assert not takes(schema | {"exclusiveMinimum": low}, str(low))
    assert not takes(schema | {"exclusiveMaximum": high}, str(high))
    assert takes(schema | {"minimum": low - 5, "maximum": high + 5}, str(low))
    assert not takes(schema | {"minimum": low - 5, "maximum": high + 5}, str(high + 1))


@pytest.mark.parametrize(
    ("counts", "allowed"),
    [
        ({"minProperties": 1}, {1, 2, 3}),
        ({"maxProperties": 1}, {0, 1}),
        ({"minProperties": 1, "maxProperties": 1}, {1}),
        ({"minProperties": 0, "maxProperties": 3}, {0, 1, 2, 3}),
        ({"maxProperties": 4}, {0, 1, 2, 3}),
    ],
)
def test_the_optional_properties_of_a_closed_object_are_counted(counts: dict[str, int], allowed: set[int]) -> None:
    for count in range(4):
        value = dict.fromkeys("abc"[:count], 0)
        assert takes(THREE | counts, json.dumps(value)) is (count in allowed)
        # A required property counts too.
        more = {keyword: number + 1 for keyword, number in counts.items()}
        schema = THREE | {"properties": {**THREE["properties"], "z": {}}, "required": ["z"]} | more
        assert takes(schema, json.dumps(value | {"z": 0})) is (count in allowed)


@pytest.mark.parametrize(
    "counts", [{"minProperties": 1}, {"maxProperties": 1}, {"minProperties": 1, "maxProperties": 1}]
)
def test_optional_properties_beside_unnamed_ones_are_not_counted(counts: dict[str, int]) -> None:
    assert "not counted" in refusal(THREE | {"additionalProperties": True} | counts).message


@pytest.mark.parametrize(
    "counts", [{"minProperties": 2}, {"maxProperties": 2}, {"minProperties": 1, "maxProperties": 2}]
)
def test_a_count_that_a_grammar_cannot_keep_is_refused(counts: dict[str, int]) -> None:
    assert "not counted" in refusal(THREE | counts).message


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"minProperties": 4}, "exceeds the number of allowed properties"),
        ({"minProperties": 2, "maxProperties": 1}, "more properties are required than allowed"),
        ({"required": ["a", "b"], "maxProperties": 1}, "more properties are required than allowed"),
    ],
)
def test_a_count_that_no_object_has_is_refused(counts: dict[str, Any], says: str) -> None:
    assert says in refusal(THREE | counts).message


def test_a_count_that_only_the_required_properties_reach_is_enforced() -> None:
    required: dict[str, Any] = {"type": "object", "required": ["a"], "additionalProperties": True}
    assert takes(required | {"maxProperties": 1}, '{"a": 0}')
    assert not takes(required | {"maxProperties": 1}, '{"a": 0, "b": 0}')
    assert takes({"type": "object", "maxProperties": 0}, "{}")
    assert not takes({"type": "object", "maxProperties": 0}, '{"a": 0}')


def test_a_minimum_may_need_every_property() -> None:
    one = {"type": "object", "properties": {"a": {}}, "minProperties": 1}
    assert takes(one, '{"a": 0}')
    assert not takes(one, "{}")


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "object", "properties": []}, "properties"),
        ({"type": "object", "properties": {"\ud800": {}}}, "properties"),
        ({"type": "object", "patternProperties": []}, "patternProperties"),
        ({"type": "object", "required": "a"}, "required"),
        ({"type": "object", "required": ["a", 1]}, "required"),
        ({"type": "object", "required": ["\ud800"]}, "required"),
        ({"type": "object", "propertyNames": {"enum": ["\ud800"]}}, "propertyNames"),
        ({"type": "array", "prefixItems": {}}, "prefixItems"),
        ({"type": "array", "uniqueItems": 1}, "uniqueItems"),
        ({"type": "array", "uniqueItems": None}, "uniqueItems"),
        ({"type": "string", "pattern": 1}, "pattern"),
        ({"type": "string", "format": 1}, "format"),
        ({"type": "string", "minLength": "a"}, "minLength"),
        ({"type": "integer", "multipleOf": 0}, "multipleOf"),
        ({"type": "integer", "multipleOf": -2}, "multipleOf"),
        ({"type": "number", "maximum": "5"}, "maximum"),
    ],
)
def test_a_malformed_keyword_is_an_invalid_request(schema: dict[str, Any], path: str) -> None:
    error = refusal(schema)
    assert (error.code, path_in(error)) == ("invalid_request", path)


@pytest.mark.parametrize(
    ("schema", "allowed"),
    [
        # Pattern properties leave an object open, and the named ones keep their schema.
        (
            {"properties": {"a": {"type": "null"}}, "patternProperties": {"^x": {"type": "integer"}}},
            ['{"a":null}', '{"x":1}', '{"b":1}'],
        ),
        (
            {"properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
            ['{"a":null}', '{"x":1}', '{"b":1}'],
        ),
        ({"properties": {"a": {"type": "null"}}}, ['{"a":null}']),
        ({"required": ["b"]}, ['{"b":1}']),
        ({"required": ["b", "b"]}, ['{"b":1}']),
        # A name that `propertyNames` forbids is none of the object's, even if it has a schema.
        ({"propertyNames": {"enum": ["a"]}, "properties": {"a": {"type": "null"}, "b": {}}}, ['{"a":null}']),
        (
            {"propertyNames": {"pattern": "^a"}, "properties": {"a": {}}, "additionalProperties": True},
            ['{"a":null}', '{"a":1}'],
        ),
        ({"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}}, ['{"a":1}', '{"b":1}']),
        ({"propertyNames": {"pattern": "^[ab]"}, "additionalProperties": {"type": "integer"}}, ['{"a":1}', '{"b":1}']),
        ({"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": False, "properties": {"b": {}}}, ['{"b":1}']),
        ({"propertyNames": {"enum": ["a", "b"]}, "required": ["b"]}, ['{"b":1}']),
    ],
)
def test_an_object_has_the_properties_that_its_keywords_allow(schema: dict[str, Any], allowed: list[str]) -> None:
    every = ['{"a":null}', '{"a":1}', '{"x":1}', '{"x":null}', '{"b":1}']
    assert taken({"type": "object"} | schema, every) == [text for text in every if text in allowed]


@pytest.mark.parametrize(
    ("schema", "path", "says"),
    [
        ({"propertyNames": {"enum": ["a"]}, "required": ["b"]}, "required", "does not allow `b`"),
        (
            {"propertyNames": {"pattern": "^a"}, "patternProperties": {"^b": {}}},
            "propertyNames",
            "next to `patternProperties`",
        ),
        (
            {"propertyNames": {"pattern": "^a"}, "properties": {"a": {}}, "additionalProperties": {"type": "null"}},
            "propertyNames",
            "next to `properties`",
        ),
    ],
)
def test_names_that_cannot_be_restricted_are_refused(schema: dict[str, Any], path: str, says: str) -> None:
    error = refusal({"type": "object"} | schema)
    assert (error.code, path_in(error)) == ("unsupported_schema", path)
    assert says in error.message


ARRAYS = ["[]", "[1]", "[2]", "[1,2]", "[2,1]", "[1,1]", '["a"]', "[1,2,1]"]


@pytest.mark.parametrize(
    ("schema", "allowed"),
    [
        ({"minItems": 1, "maxItems": 1}, ["[1]", "[2]", '["a"]']),
        ({"minItems": 2}, ["[1,2]", "[2,1]", "[1,1]", "[1,2,1]"]),
        ({"maxItems": 0}, ["[]"]),
        ({"prefixItems": [{"const": 1}], "items": False}, ["[]", "[1]"]),
        ({"prefixItems": [{"const": 1}], "items": {"const": 2}}, ["[]", "[1]", "[1,2]"]),
        ({"items": [{"const": 1}], "additionalItems": False}, ["[]", "[1]"]),
        ({"items": [{"const": 1}], "additionalItems": {"const": 2}}, ["[]", "[1]", "[1,2]"]),
        ({"items": {"const": 1}, "additionalItems": False}, ["[]", "[1]", "[1,1]"]),
        ({"uniqueItems": True, "items": {"enum": [1, 2]}}, ["[]", "[1]", "[2]", "[1,2]", "[2,1]"]),
        ({"uniqueItems": True, "items": {"enum": [1, 2]}, "minItems": 1}, ["[1]", "[2]", "[1,2]", "[2,1]"]),
        ({"uniqueItems": True, "items": {"enum": [1, 2]}, "minItems": 2}, ["[1,2]", "[2,1]"]),
        ({"uniqueItems": True, "items": {"enum": [1, 2]}, "maxItems": 2, "minItems": 2}, ["[1,2]", "[2,1]"]),
        ({"uniqueItems": True, "items": {"enum": [1, 2]}, "maxItems": 1}, ["[]", "[1]", "[2]"]),
        ({"uniqueItems": True, "maxItems": 0}, ["[]"]),
        ({"uniqueItems": False, "items": {"enum": [1, 2]}}, ["[]", "[1]", "[2]", "[1,2]", "[2,1]", "[1,1]", "[1,2,1]"]),
    ],
)
def test_an_array_has_the_items_that_its_keywords_allow(schema: dict[str, Any], allowed: list[str]) -> None:
    assert taken({"type": "array"} | schema, ARRAYS) == allowed


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"minItems": 2, "maxItems": 1}, "maxItems"),
        ({"uniqueItems": True, "items": {"enum": [1, 2]}, "minItems": 3}, "uniqueItems"),
        ({"uniqueItems": True, "items": {"enum": [1, 2]}, "prefixItems": [{"const": 1}]}, "uniqueItems"),
        ({"uniqueItems": True, "items": {"type": "string"}}, "uniqueItems"),
        ({"uniqueItems": True, "maxItems": 2}, "uniqueItems"),
        # 46 · 45 pairs are more than the 2000 arrays that are written out.
        ({"uniqueItems": True, "items": {"enum": list(range(46))}, "minItems": 2}, "uniqueItems"),
    ],
)
def test_an_array_that_cannot_be_enforced_is_refused(schema: dict[str, Any], path: str) -> None:
    error = refusal({"type": "array"} | schema)
    assert (error.code, path_in(error)) == ("unsupported_schema", path)


def test_distinct_items_are_allowed_up_to_the_length_at_which_there_are_too_many_arrays() -> None:
    unique: dict[str, Any] = {"type": "array", "uniqueItems": True}
    # 44 · 43 + 44 + 1 arrays of up to two items are fewer than 2000, and those of three are not.
    texts = ["[]", "[43]", "[0,43]", "[0,1,43]"]
    assert taken(unique | {"items": {"enum": list(range(44))}}, texts) == ["[]", "[43]", "[0,43]"]
    assert taken(unique | {"items": {"enum": list(range(46))}}, texts) == ["[]", "[43]"]
    assert taken(unique | {"items": {"enum": list(range(45))}, "minItems": 2}, texts) == ["[0,43]"]


@pytest.mark.parametrize(
    ("schema", "allowed"),
    [
        ({"minLength": 2, "maxLength": 3}, ['"ab"', '"abc"']),
        ({"maxLength": 1}, ['"a"', '""']),
        ({"minLength": 2, "maxLength": 2}, ['"ab"']),
        ({"pattern": "b"}, ['"ab"', '"abc"']),
        ({"pattern": "^a", "maxLength": 2}, ['"a"', '"ab"']),
        ({"format": "date"}, ['"2024-02-29"']),
        ({"format": "date", "pattern": "^2024"}, ['"2024-02-29"']),
        ({"format": "date", "pattern": "^2023"}, []),
        ({"format": "date", "minLength": 10}, ['"2024-02-29"']),
        ({"format": "date", "maxLength": 10}, ['"2024-02-29"']),
        ({"format": "ipv4"}, ['"10.0.0.1"']),
        ({"format": "ipv4", "maxLength": 8}, ['"10.0.0.1"']),
        ({"format": "of my own"}, ['"a"', '"ab"', '"abc"', '""', '"2024-02-29"', '"10.0.0.1"']),
        ({"format": "guid", "maxLength": 0}, ['""']),
    ],
)
def test_a_string_has_the_length_pattern_and_format_that_its_keywords_allow(
    schema: dict[str, Any], allowed: list[str]
) -> None:
    every = ['"a"', '"ab"', '"abc"', '""', '"2024-02-29"', '"10.0.0.1"']
    if allowed:
        assert taken({"type": "string"} | schema, every) == allowed
    else:
        assert not taken({"type": ["string", "null"]} | schema, every)


@pytest.mark.parametrize(
    ("length", "longest"), [({}, 254), ({"maxLength": 220}, 220), ({"maxLength": 300}, 254), ({"minLength": 254}, 254)]
)
def test_a_format_without_a_longest_value_has_a_limit_that_a_shorter_one_replaces(
    length: dict[str, int], longest: int
) -> None:
    lowered, _ = lower_string({"type": "string", "format": "email"} | length, lambda _: None)
    assert lowered == {"format": "email"} | length | {"maxLength": longest}
    assert path_in(refusal({"type": "string", "format": "email", "minLength": 255})) == "format"


@pytest.mark.parametrize(
    ("schema", "allowed"),
    [
        ({"minimum": 2}, ["2", "2.5", "3"]),
        ({"exclusiveMinimum": 2}, ["2.5", "3"]),
        ({"maximum": 2}, ["1", "1.5", "2"]),
        ({"exclusiveMaximum": 2}, ["1", "1.5"]),
        ({"minimum": 2, "exclusiveMinimum": 2}, ["2.5", "3"]),
        ({"minimum": 1, "exclusiveMinimum": 2}, ["2.5", "3"]),
        ({"minimum": 2.5, "exclusiveMinimum": 2}, ["2.5", "3"]),
        ({"maximum": 2, "exclusiveMaximum": 2}, ["1", "1.5"]),
        ({"maximum": 3, "exclusiveMaximum": 2}, ["1", "1.5"]),
        ({"maximum": 1.5, "exclusiveMaximum": 2}, ["1", "1.5"]),
        ({"minimum": 2, "exclusiveMinimum": True}, ["2.5", "3"]),
        ({"minimum": 2, "exclusiveMinimum": False}, ["2", "2.5", "3"]),
        ({"minimum": 2, "maximum": 2}, ["2"]),
        ({"minimum": 1, "exclusiveMaximum": 2}, ["1", "1.5"]),
        ({"multipleOf": 0.5}, ["1", "1.5", "2", "2.5", "3"]),
        ({"multipleOf": 1}, ["1", "2", "3"]),
        ({"type": "integer"}, ["1", "2", "3"]),
        ({"type": "integer", "minimum": 1.5}, ["2", "3"]),
        ({"type": "integer", "exclusiveMinimum": 1.5}, ["2", "3"]),
        ({"type": "integer", "exclusiveMinimum": 2}, ["3"]),
        ({"type": "integer", "maximum": 2.5}, ["1", "2"]),
        ({"type": "integer", "exclusiveMaximum": 2.5}, ["1", "2"]),
        ({"type": "integer", "exclusiveMaximum": 2}, ["1"]),
        ({"type": "integer", "minimum": 2, "maximum": 2}, ["2"]),
        ({"type": "integer", "multipleOf": 2}, ["2"]),
    ],
)
def test_a_number_is_within_its_bounds(schema: dict[str, Any], allowed: list[str]) -> None:
    assert taken({"type": "number"} | schema, ["1", "1.5", "2", "2.5", "3"]) == allowed


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "minimum": 2, "maximum": 1.5},
        {"type": "number", "minimum": 2, "exclusiveMaximum": 2},
        {"type": "number", "exclusiveMinimum": 2, "maximum": 2},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
        {"type": "integer", "minimum": 3, "maximum": 3, "multipleOf": 2},
        {"type": "integer", "format": "int32", "minimum": 2**31},
    ],
)
def test_bounds_between_which_there_is_no_number_are_refused(schema: dict[str, Any]) -> None:
    error = refusal(schema)
    assert (error.code, path_in(error)) == ("unsupported_schema", "minimum")
    assert "no value satisfies this" in error.message


EXACT = 2**53


@pytest.mark.parametrize(
    ("schema", "texts", "allowed"),
    [
        # Up to 2^53 a double holds every integer, and a looser bound is tightened to it; at 10^18 there is none.
        ({"minimum": EXACT}, [EXACT - 1, EXACT], [EXACT]),
        ({"maximum": -EXACT}, [-EXACT, -EXACT + 1], [-EXACT]),
        ({"minimum": -EXACT - 1}, [-EXACT - 1, -EXACT], [-EXACT]),
        ({"maximum": EXACT + 1}, [EXACT, EXACT + 1], [EXACT]),
        ({"minimum": -(10**18)}, [-(10**18) + 1], [-(10**18) + 1]),
        ({"maximum": 10**18}, [10**18 - 1], [10**18 - 1]),
        ({"minimum": -(10**18) + 1}, [-EXACT, -EXACT - 1], [-EXACT]),
        ({"maximum": 10**18 - 1}, [EXACT, EXACT + 1], [EXACT]),
    ],
)
def test_an_integer_that_no_double_holds_is_never_a_bound(
    schema: dict[str, Any], texts: list[int], allowed: list[int]
) -> None:
    assert taken({"type": "integer"} | schema, [*map(str, texts)]) == [*map(str, allowed)]


@pytest.mark.parametrize("schema", [{"minimum": EXACT + 1}, {"maximum": -EXACT - 1}, {"minimum": 10**18}])
def test_an_integer_beyond_the_doubles_cannot_be_required(schema: dict[str, Any]) -> None:
    error = refusal({"type": "integer"} | schema)
    assert (error.code, path_in(error)) == ("unsupported_schema", "minimum")


LARGEST = 10**15


def test_a_number_is_at_most_ten_to_the_fifteenth_where_it_has_a_bound() -> None:
    number: dict[str, Any] = {"type": "number"}
    assert taken(number | {"minimum": LARGEST}, [str(LARGEST)]) == [str(LARGEST)]
    assert taken(number | {"maximum": -LARGEST}, [str(-LARGEST)]) == [str(-LARGEST)]
    assert "at most" in refusal(number | {"minimum": LARGEST + 1}).message
    assert "at least" in refusal(number | {"maximum": -LARGEST - 1}).message
    # A bound beyond it is replaced by it.
    for bound in (LARGEST, LARGEST + 1):
        assert taken(number | {"maximum": bound}, [str(LARGEST), f"{LARGEST}.5"]) == [str(LARGEST)]
        assert taken(number | {"minimum": -bound}, [str(-LARGEST), f"-{LARGEST}.5"]) == [str(-LARGEST)]


@pytest.mark.parametrize(
    ("schema", "allowed"),
    [
        ({"minimum": 2500}, [5000, 10_000]),
        ({"minimum": 5000}, [5000, 10_000]),
        ({"exclusiveMinimum": 5000}, [10_000]),
        ({"maximum": 5000}, [-5000, 0, 5000]),
        ({"exclusiveMaximum": 5000}, [-5000, 0]),
        ({"maximum": 7500}, [-5000, 0, 5000]),
        ({"minimum": 0, "maximum": 0}, [0]),
    ],
)
def test_the_multiples_of_a_large_divisor_are_within_the_bounds(schema: dict[str, Any], allowed: list[int]) -> None:
    texts = [*map(str, (-5000, -2500, 0, 2500, 5000, 10_000))]
    assert taken({"type": "integer", "multipleOf": 5000} | schema, texts) == [*map(str, allowed)]


def test_of_a_large_divisor_the_thousand_multiples_closest_to_zero_are_allowed() -> None:
    multiple: dict[str, Any] = {"type": "integer", "multipleOf": 1001}

    def ends(schema: dict[str, Any]) -> tuple[int, int]:
        """The smallest and the largest factor that is allowed, of those around the expected ones."""
        factors = {end + step for end in (-1000, -500, -10, 0, 5, 500, 1000, 2000, 2010, 3000) for step in (-1, 0, 1)}
        found = [int(text) // 1001 for text in taken(multiple | schema, [str(1001 * factor) for factor in factors])]
        assert set(found) == {factor for factor in factors if min(found) <= factor <= max(found)}
        return min(found), max(found)

    assert ends({}) == (-500, 500)
    assert ends({"minimum": 0}) == (0, 1000)
    assert ends({"maximum": 0}) == (-1000, 0)
    assert ends({"minimum": 1001 * 2000}) == (2000, 3000)
    assert ends({"minimum": 1001 * 2000, "maximum": 1001 * 2010}) == (2000, 2010)
    assert ends({"minimum": -10 * 1001, "maximum": 1001 * 5}) == (-10, 5)


def test_a_divisor_of_up_to_a_thousand_has_no_last_multiple() -> None:
    assert takes({"type": "integer", "multipleOf": 1000}, str(1000 * 10**6))
    assert not takes({"type": "integer", "multipleOf": 1001}, str(1001 * 10**6))
    assert takes({"type": "number", "multipleOf": 0.999}, "999000")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 5000, "minimum": 1, "maximum": 4999},
        {"type": "integer", "multipleOf": 5000, "exclusiveMinimum": 0, "exclusiveMaximum": 5000},
        {"type": "number", "multipleOf": 1234.5, "minimum": 1, "maximum": 1234},
        {"type": "integer", "multipleOf": 1234.5, "minimum": 1, "maximum": 1235},
    ],
)
def test_bounds_between_which_there_is_no_multiple_are_refused(schema: dict[str, Any]) -> None:
    error = refusal(schema)
    assert (error.code, path_in(error)) == ("unsupported_schema", "multipleOf")


def test_a_multiple_of_a_fraction_is_whole_where_integers_are_asked_for() -> None:
    texts = ["1234.5", "2469", "0", "-2469"]
    assert taken({"type": "number", "multipleOf": 1234.5}, texts) == texts
    assert taken({"type": "integer", "multipleOf": 1234.5}, texts) == ["2469", "0", "-2469"]
