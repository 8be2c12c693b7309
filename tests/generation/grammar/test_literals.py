"""Literal values in schemas: which of them the grammar can enforce exactly, and which are the same."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.literals import (
    EXACT,
    MAX_BOUND,
    MAX_LITERAL_DEPTH,
    check_literal,
    check_text,
    distinct,
    identity,
    numeric_escape,
    read_bound,
    read_count,
    type_name,
)


@pytest.mark.parametrize("value", [0.5, -0.25, 1e-16, EXACT / 1e16, 3, -7, 4.0, 123456789.25])
def test_a_bound_with_few_digits_is_enforced(value: float) -> None:
    assert read_bound(value, "minimum") == value


@pytest.mark.parametrize("value", [(EXACT + 2) / 1e16, 1.5e-17, 999999999999999.5, MAX_BOUND + 0.5])
def test_a_bound_with_too_many_digits_is_refused(value: float) -> None:
    with pytest.raises(PartError, match="too many digits"):
        read_bound(value, "minimum")


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf")])
def test_a_bound_that_is_not_a_number_is_refused(value: object) -> None:
    with pytest.raises(PartError, match="must be a number") as caught:
        read_bound(value, "minimum")
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("value", [2.0**60, -(10**400), MAX_BOUND + 1])
def test_a_whole_bound_may_have_any_size(value: float) -> None:
    assert read_bound(value, "minimum") == value
    assert type(read_bound(value, "minimum")) is int


@pytest.mark.parametrize("value", [True, False, "1", None, [1], -1, -0.5, 1.5])
def test_a_count_that_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(PartError, match="`minItems` must be a whole number") as caught:
        read_count(value, 10, "minItems")
    assert caught.value.code == "invalid_request"


def test_a_minimum_above_the_limit_is_refused_and_a_maximum_is_lowered_to_it() -> None:
    assert [read_count(value, 10, "minItems") for value in (0, 3.0, 10)] == [0, 3, 10]
    with pytest.raises(PartError, match="`minItems` may be at most 10, not 11") as caught:
        read_count(11, 10, "minItems")
    assert caught.value.code == "schema_too_complex"
    assert [read_count(value, 10, "maxItems") for value in (9, 10, 11)] == [9, 10, 10]


def test_a_long_value_is_shortened_in_an_error() -> None:
    for value, shown in (("x" * 38, f"'{'x' * 38}'"), ("x" * 39, f"'{'x' * 39}…")):
        with pytest.raises(PartError) as caught:
            read_bound(value, "minimum")
        assert caught.value.message == f"`minimum` must be a number, not {shown}"


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (None, 1),
        (True, 1),
        ("a", 1),
        (EXACT, 1),
        (-EXACT, 1),
        (0.5, 1),
        ([], 1),
        ([1, [2, 3]], 5),
        ({}, 1),
        ({"a": 1, "b": {"c": None}}, 4),
        (nested(MAX_LITERAL_DEPTH), MAX_LITERAL_DEPTH + 1),
    ],
)
def test_a_constant_counts_as_all_the_values_in_it(value: Any, count: int) -> None:
    assert check_literal(value) == count


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (EXACT + 1, "unsupported_schema"),
        (-EXACT - 1, "unsupported_schema"),
        (1.5e-17, "unsupported_schema"),
        (1e17, "unsupported_schema"),
        (float("nan"), "invalid_request"),
        (float("-inf"), "invalid_request"),
        ("\ud800", "invalid_request"),
        ({"\udfff": 1}, "invalid_request"),
        ([{"a": "\ud800"}], "invalid_request"),
        (b"a", "invalid_request"),
        (nested(MAX_LITERAL_DEPTH + 1), "schema_too_complex"),
        ({"a": nested(MAX_LITERAL_DEPTH)}, "schema_too_complex"),
    ],
)
def test_a_constant_that_cannot_be_written_exactly_is_refused(value: Any, code: str) -> None:
    with pytest.raises(PartError) as caught:
        check_literal(value)
    assert caught.value.code == code


def test_half_of_a_surrogate_pair_is_refused_and_its_neighbours_are_not() -> None:
    for char in ("\ud7ff", "\ue000"):
        check_text(f"a{char}", "a name")
    for half in ("\ud800", "\udfff"):
        with pytest.raises(PartError, match="a name contains half of a surrogate pair") as caught:
            check_text(f"a{half}", "a name")
        assert caught.value.code == "invalid_request"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a b~é", None),
        ("\b\t\n\f\r", None),
        ("", None),
        ("a\x01\x02", "\x01"),
        ("\x1f", "\x1f"),
        ("a\x7f", "\x7f"),
        ("\x80", None),
    ],
)
def test_only_some_control_characters_need_a_numeric_escape(text: str, found: str | None) -> None:
    assert numeric_escape(text) == found


SAME: list[tuple[Any, Any]] = [
    (1, 1.0),
    (0, -0.0),
    ([1, "a"], [1.0, "a"]),
    ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}),
    ("a", "a"),
    (None, None),
]
DIFFERENT: list[tuple[Any, Any]] = [
    (1, True),
    (0, False),
    (1, "1"),
    (None, "null"),
    ("true", True),
    ([1, 2], [2, 1]),
    ([], {}),
    ([1], 1),
    ({"a": 1}, {"a": 2}),
    ({"a": 1}, {"b": 1}),
    ([["a", 1]], {"a": 1}),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_values_are_the_same_as_in_json_schema(one: Any, other: Any) -> None:
    assert identity(one) == identity(other)
    assert distinct([one, other]) == [one]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_values_of_different_types_are_different(one: Any, other: Any) -> None:
    assert identity(one) != identity(other)
    assert distinct([one, other, one]) == [one, other]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"),
        (True, "boolean"),
        (1, "integer"),
        (1.0, "integer"),
        (1.5, "number"),
        ("1", "string"),
        ([], "array"),
        ({}, "object"),
    ],
)
def test_a_value_has_the_type_of_json_schema(value: Any, name: str) -> None:
    assert type_name(value) == name
