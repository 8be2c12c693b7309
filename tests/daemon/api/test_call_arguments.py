"""Arguments of tool calls as models write them, some of them cut off."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from edgekit.daemon.api.call_arguments import parse_arguments, repair_arguments

LARGEST = sys.float_info.max


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        (" \n", {}),
        ("{}", {}),
        ('{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        # JSON has no infinity.
        ('{"a": 1e999, "b": [-1e999], "c": 1.5e308}', {"a": LARGEST, "b": [-LARGEST], "c": 1.5e308}),
    ],
)
def test_a_complete_object_is_taken_as_it_is(text: str, value: dict[str, Any]) -> None:
    assert parse_arguments(text) == repair_arguments(text) == value


@pytest.mark.parametrize(
    "text", ["[1]", "5", '"a"', "null", '{"a": NaN}', '{"a": Infinity}', "{a: 1}", '{"a": 1}}', "["]
)
def test_what_is_no_object_is_none(text: str) -> None:
    assert parse_arguments(text) is None


@pytest.mark.parametrize("text", ["[1", "5", '"a', "x", "{a", "[" * 100_000])
def test_what_is_not_even_the_start_of_one_cannot_be_repaired(text: str) -> None:
    assert repair_arguments(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{", {}),
        ('{"city": "Par', {"city": "Par"}),
        ('{"city": "Paris", "da', {"city": "Paris"}),
        ('{"city": "Paris", "days":', {"city": "Paris"}),
        ('{"list": [1, {"a": "b', {"list": [1, {"a": "b"}]}),
        ('{"a": 1e999, "b": [-1e999, ', {"a": LARGEST, "b": [-LARGEST]}),
        ('{"a": 1.5, "b": tru', {"a": 1.5}),
    ],
)
def test_an_object_that_was_cut_off_is_closed_where_it_ends(text: str, value: dict[str, Any]) -> None:
    assert parse_arguments(text) is None
    assert repair_arguments(text) == value
