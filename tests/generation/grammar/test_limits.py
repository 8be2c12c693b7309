"""Hostile schemas and grammars are refused, by limits on size and not on time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.types import ResponseFormat
from tests.generation.grammar.kits import allowed, kit, walk


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


OVERSIZED: dict[str, Any] = {
    "bytes": {"const": "x" * 310_000},
    "depth": nested(40, in_object),
    "depth of alternatives": nested(40, lambda part: {"anyOf": [part, {"type": "null"}]}),
    "depth of references": chain(1500, in_object),
    "depth of both": chain(160, lambda part: nested(12, in_object) | {"anyOf": [in_object(part)]}),
    "parts": {"type": "object", "properties": {f"p{at}": {} for at in range(20_001)}},
    "constants": {"enum": list(range(10_001))},
    "depth of a constant": {"const": nested(40, lambda part: [part])},
    "length": {"type": "string", "minLength": 10**9},
    "items": {"type": "array", "minItems": 10**6},
    "items of items": nested(3, lambda part: {"type": "array", "prefixItems": [part] * 40, "maxItems": 1000}),
    "combinations": {
        "allOf": [{"anyOf": [{"type": "integer", "minimum": a * b} for a in range(1, 11)]} for b in range(1, 7)]
    },
    "patterns": {"type": "string", "pattern": "^((a{1,90}){1,90}){1,90}$"},
    "pairs of options": {"oneOf": [in_object({"const": at}) | {"required": ["a"]} for at in range(300)]},
}


@pytest.mark.parametrize("name", OVERSIZED)
def test_a_schema_that_exceeds_a_limit_is_refused(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").schema(OVERSIZED[name])
    assert caught.value.code == "schema_too_complex", caught.value.message


def test_a_schema_nested_beyond_pythons_stack_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").schema(nested(100_000, lambda part: [part]))
    assert caught.value.code == "schema_too_complex"


AMPLE: dict[str, Any] = {
    "doubling references": chain(20, lambda part: {"allOf": [part, part]}, {"type": "integer"}),
    "tenfold references": chain(12, lambda part: {"type": "array", "prefixItems": [part] * 10}),
    "memory of a regular expression": {"type": "string", "pattern": "^.*a.{400}$"},
    "several of them": {"type": "string", "pattern": "|".join(f".*{a}.*{b}" for a in "abcdefgh" for b in "stuvwxyz")},
    "long strings": {"type": "string", "minLength": 1000, "maxLength": 20_000},
    "many properties": {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(500)}},
    "many constants": {"enum": [f"v{at}" for at in range(4000)]},
    "many names": {
        "type": "object",
        "additionalProperties": {"type": "object", "additionalProperties": {}},
        "maxProperties": 1000,
    },
}


@pytest.mark.parametrize("name", ["refs", "both", "arrays"])
def test_the_deepest_schemas_compile_on_a_small_stack(name: str) -> None:
    program = f"""
import threading
from edgekit.errors import RequestError
from tests.generation.grammar.kits import kit
from tests.generation.grammar.test_limits import chain, in_object, nested

schemas = {{
    "refs": chain(990, in_object),
    "both": chain(120, lambda part: nested(12, in_object) | {{"anyOf": [in_object(part)]}}),
    "arrays": chain(600, lambda part: {{"type": "array", "items": {{"anyOf": [part, {{"type": "null"}}]}}}}),
}}
def ask():
    try:
        kit("byte_level").schema(schemas["{name}"])
    except RequestError as error:
        print(error.message)
    else:
        print("compiled")

kit("byte_level").compiler.prepare()
threading.stack_size(1 << 20)
thread = threading.Thread(target=ask)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout


HOSTILE_GRAMMARS = [
    ("regex", "(a|aa){500}b"),
    ("regex", "(?:ab?){900}"),
    ("regex", ".*a.{400}"),
    ("grammar", 'start: ("a"){1000000000}'),
    ("grammar", 'start: ("a" | "b"){1000000000}'),
    ("grammar", 'start: ("a")~1000000000'),
    ("grammar", 'start: x{1000}\nx: y{1000}\ny: "a"{1000}'),
    ("grammar", 'root ::= "a"{1000000000}'),
    *(("json_schema", schema) for schema in AMPLE.values()),
]


@pytest.mark.parametrize(("kind", "value"), HOSTILE_GRAMMARS)
def test_what_is_accepted_can_be_answered(kind: str, value: Any) -> None:
    used = kit("byte_level")
    try:
        grammar = used.compiler.compile(ResponseFormat(kind, value))  # type: ignore[arg-type]
    except RequestError as error:
        assert error.code == "schema_too_complex"  # noqa: PT017
        return
    for seed in (1, 2, 3):
        tokens, ended = walk(used, grammar, seed, max_tokens=150, hurry=(0.1, 0.5, 0.9)[seed - 1], forced=False)
        assert ended or len(tokens) >= 150


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (
            {"type": "array", "minItems": 900, "items": {"type": "array", "minItems": 900, "items": {"type": "null"}}},
            "even the shortest value has ",
        ),
        (
            {"type": "array", "items": {"type": "string", "minLength": 20_000}, "minItems": 6},
            "even the shortest value has ",
        ),
        (
            chain(18, lambda part: {"type": "array", "prefixItems": [part, part], "minItems": 2}),
            "even the shortest value has ",
        ),
        (
            in_object({"type": "string", "maxLength": 6000, "pattern": r"^(?:\S+\s+){0,599}\S+$"}),
            "`response_format.properties.a`: the grammar",
        ),
    ],
)
def test_a_schema_whose_answers_cannot_be_followed_is_refused_by_the_path_of_its_part(schema: Any, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").schema(schema)
    assert caught.value.code == "schema_too_complex"
    assert caught.value.message.startswith(says)


def test_a_repetition_that_changes_nothing_is_not_counted() -> None:
    used = kit("byte_level")
    grammar = used.schema({"type": "object", "patternProperties": {"[a-z]{1,100}": {"type": "null"}}})
    tokens, ended = walk(used, grammar, 3, max_tokens=200)
    assert ended or tokens


def test_many_optional_properties_can_be_generated() -> None:
    used = kit("byte_level")
    grammar = used.schema({"type": "object", "properties": {f"p{at}": {"type": "null"} for at in range(1900)}})
    matcher = grammar.matcher()
    for token in used.tokenizer.encode('{"p3": null, "p77": null, "p1899": null}', obey_special=False):
        assert token in allowed(matcher)
        matcher.accept(token)
    assert matcher.accepting


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
def test_a_grammar_that_exceeds_a_limit_is_refused(source: str) -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").compiler.compile(ResponseFormat("grammar", source))
    assert caught.value.code == "schema_too_complex"


@pytest.mark.parametrize("value", [["x"] * 3000, ["x" * 70_000]])
def test_choices_that_exceed_a_limit_are_refused(value: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").compiler.compile(ResponseFormat("choice", value))
    assert caught.value.code == "schema_too_complex"


def test_a_regular_expression_that_exceeds_a_limit_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").compiler.compile(ResponseFormat("regex", "(?:(?:ab){500}){500}"))
    assert caught.value.code == "schema_too_complex"
