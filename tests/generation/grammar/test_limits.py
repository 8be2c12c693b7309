"""Hostile schemas and grammars end in a refusal, by limits of what is counted and not of the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.request import ResponseFormat
from tests.generation.grammar.kits import kit, walk


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    part: Any = {"type": "integer"}
    for _ in range(depth):
        part = wrap(part)
    return part


def chain(length: int, link: Callable[[Any], Any], end: Any = True) -> Any:
    definitions = {f"d{at}": link({"$ref": f"#/$defs/d{at + 1}"}) for at in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": definitions | {f"d{length}": end}}


def in_object(part: Any) -> Any:
    return {"type": "object", "properties": {"a": part}}


TOO_MUCH: dict[str, Any] = {
    "bytes": {"const": "x" * 70_000},
    "depth": nested(40, in_object),
    "depth of alternatives": nested(40, lambda part: {"anyOf": [part, {"type": "null"}]}),
    "depth of references": chain(500, in_object),
    "depth of both": chain(40, lambda part: nested(12, in_object) | {"anyOf": [in_object(part)]}),
    "parts": {"type": "object", "properties": {f"p{at}": {} for at in range(2500)}},
    "constants": {"enum": list(range(6000))},
    "depth of a constant": {"const": nested(40, lambda part: [part])},
    "length": {"type": "string", "maxLength": 10**9},
    "items": {"type": "array", "minItems": 10**6},
    "items of items": nested(3, lambda part: {"type": "array", "prefixItems": [part] * 40, "maxItems": 1000}),
    "combinations": {
        "allOf": [{"anyOf": [{"type": "integer", "minimum": a * b} for a in range(1, 11)]} for b in range(1, 7)]
    },
    "patterns": {"type": "string", "pattern": "^((a{1,90}){1,90}){1,90}$"},
    "pairs of options": {"oneOf": [in_object({"const": at}) | {"required": ["a"]} for at in range(300)]},
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_schema_that_asks_too_much_is_refused(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").schema(TOO_MUCH[name])
    assert caught.value.code == "schema_too_complex", caught.value.message


def test_a_schema_nested_beyond_pythons_stack_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").schema(nested(100_000, lambda part: [part]))
    assert caught.value.code == "invalid_request"


AMPLE: dict[str, Any] = {
    "doubling references": chain(20, lambda part: {"allOf": [part, part]}, {"type": "integer"}),
    "tenfold references": chain(12, lambda part: {"type": "array", "prefixItems": [part] * 10}),
    "memory of a regular expression": {"type": "string", "pattern": "^.*a.{400}$"},
    "several of them": {"type": "string", "pattern": "|".join(f".*{a}.*{b}" for a in "abcdefgh" for b in "stuvwxyz")},
    "long texts": {"type": "string", "minLength": 1000, "maxLength": 20_000},
    "many properties": {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(500)}},
    "many constants": {"enum": [f"v{at}" for at in range(4000)]},
    "many names": {
        "type": "object",
        "additionalProperties": {"type": "object", "additionalProperties": {}},
        "maxProperties": 1000,
    },
}


@pytest.mark.parametrize("name", AMPLE)
def test_a_large_schema_that_is_taken_can_be_followed(name: str) -> None:
    used = kit("byte_level")
    grammar = used.schema(AMPLE[name])
    try:
        tokens, ended = walk(used, grammar, 1, most=400)
    except EdgekitError as error:
        assert error.code == "grammar_failed"  # noqa: PT017
    else:
        assert ended or len(tokens) >= 400


@pytest.mark.parametrize(
    "source",
    [
        "x" * 200_000,
        "start: r0\n" + "\n".join(f"r{at}: r{at + 1}" for at in range(3000)) + '\nr3000: "a"',
        "start: " + "(" * 3000 + '"a"' + ")" * 3000,
        "start: T0\n" + "\n".join(f"T{at}: T{at + 1} T{at + 1}" for at in range(40)) + '\nT40: "a"',
        "start: T\nT: /(.*a.{20}){20}/ & /(.*b.{20}){20}/ & ~/(.*c.{20}){20}/",
    ],
)
def test_a_grammar_that_asks_too_much_is_refused(source: str) -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").compiler.compile(ResponseFormat("grammar", source))
    assert caught.value.code == "schema_too_complex"


@pytest.mark.parametrize("value", [["x"] * 3000, ["x" * 70_000]])
def test_choices_beyond_measure_are_refused(value: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").compiler.compile(ResponseFormat("choice", value))
    assert caught.value.code == "schema_too_complex"


def test_a_regular_expression_beyond_measure_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").compiler.compile(ResponseFormat("regex", "(?:(?:ab){500}){500}"))
    assert caught.value.code == "schema_too_complex"
