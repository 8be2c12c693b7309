"""Whatever is sent as a schema, a pattern or a grammar is compiled or refused as a request; and answers satisfy it."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.grammar.keywords import ANNOTATIONS, ENFORCED, FORMATS, UNSUPPORTED
from edgekit.generation.types import ResponseFormat
from tests.generation.grammar.kits import kit, text_of, walk
from tests.generation.grammar.schemas import schemas

KEYWORDS = sorted(ENFORCED | ANNOTATIONS | UNSUPPORTED.keys())
_CHECKS = list(HealthCheck)


def nested(depth: int, kind: str) -> Any:
    part: Any = 1
    for _ in range(depth):
        part = [part] if kind == "list" else {kind: part} if kind != "allOf" else {"allOf": [part]}
    return part


VALUES = st.one_of(
    st.sampled_from(
        [
            *(None, True, False, 0, -1, 1, 2**53, 2**63, 10**400, -(10**400), 0.1, -0.5, 1e-300, 1e300, 1e16),
            *("", "#", "#/x", "a", "string", "\ud800", "\u0000", "^", "(", "[", "a{9999}", "(?=a)", "x" * 3000, "²"),
            *([], {}, [{}], [[]], {"a": 1}, {"a": {}}, {"": {}}, [None], ["a", "a"], [1, 1.0, True], {"$ref": "#"}),
            *("#/properties", "#/$defs/x/0", "#/" + "9" * 5000, "#/allOf/²", {"type": "object"}, ["null", {}], [["a"]]),
        ]
    ),
    st.sampled_from(["minimum", "list", "allOf", "not", "items", "properties", "enum"]).flatmap(
        lambda kind: st.sampled_from([5, 40, 120]).map(lambda depth: nested(depth, kind))
    ),
    st.sampled_from([*FORMATS, "datetime", "guid", "x"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
        lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), part, max_size=3),
        max_leaves=8,
    ),
)


def places(node: Any) -> list[Any]:
    """Every object and list in a value."""
    found = [node] if isinstance(node, dict | list) else []
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        found += places(part)
    return found


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A schema with some of its parts replaced."""
    schema = copy.deepcopy(draw(schemas()))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(places(schema)))
        # Copied, because a later part may replace something in it.
        value = copy.deepcopy(draw(VALUES | st.just(schema)))
        if isinstance(place, list):
            place.insert(draw(st.integers(0, len(place))), value)
        else:
            place[draw(st.sampled_from([*KEYWORDS, *place]))] = value
    return schema


def check(schema: Any, seed: int) -> None:
    """Compile a schema and, if it is one, check an answer."""
    used = kit("byte_level")
    try:
        grammar = used.schema(schema)
    except RequestError as error:
        assert error.code in {"unsupported_schema", "schema_too_complex", "invalid_request"}  # noqa: PT017
        assert len(error.message) < 2000  # noqa: PT017
        return
    try:
        tokens, ended = walk(used, grammar, seed, max_tokens=300, hurry=random.Random(seed).random(), forced=False)  # noqa: S311
    except EdgekitError as error:
        assert error.code == "grammar_failed"  # noqa: PT017
        return
    if ended:
        value = json.loads(text_of(used, tokens))
        try:
            Draft202012Validator.check_schema(schema)
        except (SchemaError, RecursionError):
            return
        assert Draft202012Validator(schema).is_valid(value), (schema, value)


@settings(max_examples=80, deadline=None, suppress_health_check=_CHECKS)
@given(schema=mutated(), seed=st.integers(0, 2**32))
@example({"type": "string", "format": {}}, 1)
@example({"type": "number", "exclusiveMaximum": 10**400}, 1)
@example({"type": "object", "required": [{}]}, 1)
@example({"type": [{}]}, 1)
@example({"$ref": "#/" + "9" * 5000}, 1)
@example({"type": "object", "propertyNames": {"pattern": "("}}, 1)
def test_a_mutated_schema_is_compiled_or_refused(schema: Any, seed: int) -> None:
    check(schema, seed)


@pytest.mark.parametrize("kind", ["minimum", "list", "allOf", "not", "items", "properties", "enum", "format"])
@pytest.mark.parametrize("depth", [101, 400, 20_000])
def test_a_deeply_nested_value_is_refused_wherever_it_is(kind: str, depth: int) -> None:
    for schema in (nested(depth, kind), {"type": "number", "minimum": nested(depth, kind)}, {"x": nested(depth, kind)}):
        with pytest.raises(RequestError) as caught:
            kit("byte_level").schema(schema)
        assert caught.value.code == "schema_too_complex"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=4000, deadline=None, suppress_health_check=_CHECKS)
@given(schema=mutated(), seed=st.integers(0, 2**32))
def test_many_mutated_schemas_are_compiled_or_refused(schema: Any, seed: int) -> None:
    check(schema, seed)


PIECES = st.sampled_from(
    [*"()[]{}|*+?^$.\\,-/abc\"'<>:=#@%~&\n 019", "start: ", "root ::= ", "\\d", "{1,9}", "(?:", "é"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=_CHECKS)
@given(kind=st.sampled_from(["regex", "grammar"]), pieces=st.lists(PIECES, max_size=25), start=st.booleans())
def test_random_patterns_and_grammars_are_compiled_or_refused(kind: Any, pieces: list[str], start: bool) -> None:
    text = ("start: " if start else "") + "".join(pieces)
    try:
        kit("byte_level").compiler.compile(ResponseFormat(kind, text))
    except RequestError as error:
        assert error.code in {"unsupported_schema", "schema_too_complex", "invalid_request"}  # noqa: PT017
