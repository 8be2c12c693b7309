"""Random output under a schema's grammar satisfies the schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edgekit.errors import RequestError
from tests.generation.grammar.kits import KINDS, kit, text_of, walk
from tests.generation.grammar.schemas import schemas

_RUNS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", KINDS)
@_RUNS
@given(schema=schemas(), seed=st.integers(0, 2**32))
def test_a_random_answer_satisfies_its_schema(kind: str, schema: Any, seed: int) -> None:
    used = kit(kind)
    try:
        grammar = used.schema(schema)
    except RequestError as error:
        # All generated schemas are enforced, but some are unsatisfiable, and merged objects are not counted.
        assert "satisf" in error.message or "maxProperties" in error.message  # noqa: PT017
        return
    tokens, ended = walk(used, grammar, seed)
    if ended:
        value = json.loads(text_of(used, tokens))
        Draft202012Validator(schema).validate(value)
