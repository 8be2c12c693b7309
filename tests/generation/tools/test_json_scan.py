from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.tools.json_scan import ObjectScanner
from tests.generation.tools.events import chunks

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
    taken = [scanner.push(chunk) for chunk in data.draw(chunks(text + rest))]
    assert scanner.done
    assert not scanner.failed
    assert sum(taken) == scanner.size == len(text)
    assert {key: json.loads(text[start:stop]) for key, (start, stop) in scanner.values.items()} == value


@given(
    text=st.lists(st.sampled_from([*'{}[]:,"\\ 01-.eu\n\t', "true", "null", '"a"', '{"a":']), max_size=14).map("".join)
)
def test_it_accepts_what_the_standard_library_accepts(text: str) -> None:
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


@pytest.mark.parametrize("number", ["0", "-0", "10", "1.5", "-1.50", "1e5", "1E+5", "1e-5", "0.0e0", "9" * 400])
@pytest.mark.parametrize("after", ["", " ", "\n", "\t", "\r"])
def test_a_number_ends_at_what_follows_it(number: str, after: str) -> None:
    for text, key in (
        (f'{{"a":{number}{after}}}', "a"),
        (f'{{"a":[{number}{after},1],"b":{number}{after},"c":1}}', "b"),
    ):
        scanner = ObjectScanner()
        assert scanner.push(text) == len(text)
        assert scanner.done
        start, stop = scanner.values[key]
        assert text[start:stop] == number


@pytest.mark.parametrize("literal", ["true", "false", "null"])
def test_a_literal_is_complete_or_not_one(literal: str) -> None:
    for size in range(1, len(literal)):
        scanner = ObjectScanner()
        scanner.push(f'{{"a": {literal[:size]}')
        assert not scanner.failed
        scanner.push("}")
        assert scanner.failed
    scanner = ObjectScanner()
    scanner.push(f'{{"a": {literal}x')
    assert scanner.failed


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("x", 0),
        (" {", 0),
        ("{,", 1),
        ("{:", 1),
        ("{1", 1),
        ("{]", 1),
        ('{"a"}', 4),
        ('{"a",', 4),
        ('{"a":,', 5),
        ('{"a":}', 5),
        ('{"a":]', 5),
        ('{"a":1 2', 7),
        ('{"a":1:', 6),
        ('{"a":1]', 6),
        ('{"a":1,}', 7),
        ('{"a":1,2', 7),
        ('{"a":[,', 6),
        ('{"a":[1,]', 8),
        ('{"a":[}', 6),
        ('{"a":["b":', 9),
        ('{"a":"b""', 8),
        ('{"a":{"b":1,"b":2},"a"', 21),
        ('{"a":-}', 6),
        ('{"a":-a', 6),
        ('{"a":"\x1f', 6),
        ('{"a":"\\u12G', 10),
        ('{"a":"\\a', 7),
        ('{"a\\x', 4),
        ('{"a":' + "9" * 401, 405),
    ],
)
def test_the_first_character_that_does_not_fit_is_not_consumed(text: str, taken: int) -> None:
    scanner = ObjectScanner()
    assert scanner.push(text) == scanner.size == taken
    assert scanner.failed


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_values_may_be_nested_64_deep(opening: str) -> None:
    scanner = ObjectScanner()
    deepest = '{"a":' + opening * 63
    assert scanner.push(deepest) == len(deepest)
    assert not scanner.failed
    scanner.push(opening)
    assert scanner.failed


def test_a_value_has_an_end_once_it_is_complete() -> None:
    scanner = ObjectScanner()
    seen = []
    for char in '{"a":[1,{"b":2}] , "c":"d","e":12}':
        scanner.push(char)
        seen.append(dict(scanner.values))
    assert seen[4] == {}
    assert seen[5] == seen[14] == {"a": (5, None)}
    assert seen[15] == seen[22] == {"a": (5, 16)}
    assert seen[23] == seen[24] == {"a": (5, 16), "c": (23, None)}
    assert seen[25] == {"a": (5, 16), "c": (23, 26)}
    assert seen[-2] == {"a": (5, 16), "c": (23, 26), "e": (31, None)}
    assert seen[-1] == {"a": (5, 16), "c": (23, 26), "e": (31, 33)}


def test_escapes_belong_to_a_key_and_do_not_end_it() -> None:
    text = r'{"\"\\\u0041\n": "\"\\", "x": 1}'
    scanner = ObjectScanner()
    assert scanner.push(text) == len(text)
    assert {key: json.loads(text[start:stop]) for key, (start, stop) in scanner.values.items()} == json.loads(text)


def _refuse(name: str) -> None:
    raise ValueError(name)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The scanner rejects duplicate keys only at the top level, where they matter.
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("twice")
    return dict(pairs)
