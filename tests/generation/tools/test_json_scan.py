from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.tools.json_scan import ObjectScanner
from tests.generation.tools.pieces import cuts

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)
STYLES: tuple[dict[str, Any], ...] = (
    {},
    {"indent": 2},
    {"separators": (",", ":")},
    {"ensure_ascii": False},
)


@given(value=OBJECTS, style=st.sampled_from(STYLES), rest=st.text("}] ,a\n", max_size=3), data=st.data())
def test_an_object_ends_where_it_ends_and_its_values_are_where_they_are(
    value: dict[str, Any], style: dict[str, Any], rest: str, data: st.DataObject
) -> None:
    text = json.dumps(value, **style)
    scanner = ObjectScanner()
    taken = [scanner.push(piece) for piece in data.draw(cuts(text + rest))]
    assert scanner.done
    assert not scanner.failed
    assert sum(taken) == scanner.size == len(text)
    assert {key: json.loads(text[start:stop]) for key, (start, stop) in scanner.values.items()} == value


@given(
    text=st.lists(st.sampled_from([*'{}[]:,"\\ 01-.eu\n\t', "true", "null", '"a"', '{"a":']), max_size=14).map("".join)
)
def test_what_it_takes_is_what_the_standard_library_takes(text: str) -> None:
    scanner = ObjectScanner()
    scanner.push(text)
    if scanner.done:
        value = json.loads(text[: scanner.size])
        assert isinstance(value, dict)
    elif text.startswith("{"):
        with pytest.raises(ValueError, match=r"."):
            json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 01}',
        '{"a": 1.}',
        '{"a": .5}',
        '{"a": +1}',
        '{"a": NaN}',
        '{"a": tru}',
        '{"a": "\x01"}',
        '{"a": "\\x"}',
        '{"a": "\\u12g4"}',
        "{'a': 1}",
        '{"a" 1}',
        '{"a": 1,}',
        '{"a": [1,]}',
        '{"a": [1}}',
        '{"a": 1, "a": 2}',
        '{"a": ' + "[" * 100,
        "[1]",
        " {}",
    ],
)
def test_what_is_not_an_object_fails_at_the_first_character_that_does_not_fit(text: str) -> None:
    scanner = ObjectScanner()
    taken = scanner.push(text)
    assert scanner.failed
    assert not scanner.done
    before = ObjectScanner()
    before.push(text[:taken])
    assert not before.failed
    assert scanner.push("}") == 0


def _refuse(name: str) -> None:
    raise ValueError(name)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two values for one key are refused on the outside only, where they would matter.
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("twice")
    return dict(pairs)
