"""Whatever a caller sends as a schema is compiled or refused; nothing else is raised."""

from __future__ import annotations

import random
from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.grammar.lark import prepare_lark, to_lark
from edgekit.generation.grammar.schema import lower_schema

JUNK: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 1e308, float("nan"), "", "x", "^(", "#", "#/x/", "string", "object"),
    *([], {}, [1], ["a"], [None], [[]], [{}], {"a": 1}, {"": {}}, ["string", 5], ["string", {}]),
    *({"type": "string"}, {"type": {"type": "string"}}, {"$ref": "#"}, {"enum": [1, {}]}),
]
KEYWORDS = [
    "type",
    "properties",
    "items",
    "prefixItems",
    "required",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "if",
    "then",
    "else",
    "$ref",
    "$defs",
    "definitions",
    "pattern",
    "format",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "uniqueItems",
    "contains",
    "minContains",
    "unevaluatedProperties",
    "additionalItems",
    "$id",
    "$anchor",
    "$dynamicRef",
    "nullable",
    "dependencies",
    "description",
    "title",
    "default",
    "examples",
    "x-guidance",
]
GRAMMAR = (
    *("root", "start", "::=", ":", "|", '"a"', '"', "[a-z]", "[^", "(", ")", "{", "}", "{2,3}", "{1,", "*", "+", "?"),
    *("\n", "#", "//", "/x/", "/", "%json", "%regex", "%import", "%ignore", "<tool>", "<[1]>", "\\", "\\u12", "\\x"),
    *("~", "..", "~3", "a", "B", " ", "$", "^", "(?:", "(?=", "\\b", "\\p{L}", "\\1", "é", "\x00", "\ud800"),
)


def compile_or_refuse(schema: object) -> None:
    try:
        lowered = lower_schema(schema, param="schema")
        lowered.document(lowered.root, {})
    except RequestError:
        pass
    except Exception as error:  # noqa: BLE001  it must name the schema
        pytest.fail(f"{schema!r} raises {error!r}")


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_with_any_value_is_compiled_or_refused(keyword: str) -> None:
    for value in JUNK:
        part = {keyword: value}
        for kind in ("object", "array", "string", "number", "boolean"):
            compile_or_refuse({"type": kind, **part})
        for around in ({"properties": {"a": part}, "required": ["a"]}, {"items": part}, {"not": part}, {"if": part}):
            compile_or_refuse(around)
        for combined in ("anyOf", "oneOf", "allOf"):
            compile_or_refuse({combined: [part, {"type": "object", "properties": {"a": {}}}]})


def test_random_nonsense_is_compiled_or_refused() -> None:
    rng = random.Random(5)  # noqa: S311

    def nonsense(depth: int = 0) -> Any:
        if depth > 2 or rng.random() < 0.3:
            return rng.choice(JUNK)
        return {rng.choice(KEYWORDS): nonsense(depth + 1) for _ in range(rng.randrange(1, 4))}

    for _ in range(5000):
        compile_or_refuse(nonsense())


def test_random_grammars_and_patterns_are_compiled_or_refused() -> None:
    rng = random.Random(3)  # noqa: S311
    for number in range(5000):
        source = "".join(rng.choice(GRAMMAR) for _ in range(rng.randrange(1, 14)))
        compile_or_refuse({"type": "string", "pattern": source})
        compile_or_refuse({"patternProperties": {source: {}}})
        compile_or_refuse({"$ref": source})
        text = ("root ::= ", "start: ", "")[number % 3] + source
        try:
            lark = to_lark(text, param="grammar")
            prepare_lark(lark, param="grammar", special={"<tool>": 1}, plain=set(), ends=set(), options={})
        except RequestError:
            pass
        except Exception as error:  # noqa: BLE001  it must name the grammar
            pytest.fail(f"{text!r} raises {error!r}")
