"""Names that `propertyNames` allows."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.names import MAX_NAME_LENGTH, read_names
from tests.generation.grammar.test_schema import path_in, refusal, taken

NAMES = ["", "a", "b", "ab", "abc", "x\ny"]


def allowed(schema: Any) -> list[str]:
    """Those of `NAMES` that a property may have."""
    names = read_names(schema)
    return [name for name in NAMES if names is None or names.allow(name)]


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        (True, NAMES),
        ({}, NAMES),
        ({"type": "string"}, NAMES),
        ({"type": ["string", "null"]}, NAMES),
        ({"title": "a name"}, NAMES),
        (False, []),
        ({"type": "integer"}, []),
        ({"type": ["integer", "null"]}, []),
        ({"const": "a"}, ["a"]),
        ({"enum": ["a", "abc", 5]}, ["a", "abc"]),
        ({"enum": ["a", "b"], "const": "b"}, ["b"]),
        ({"enum": ["a", "ab"], "minLength": 2}, ["ab"]),
        ({"enum": ["a", "ab"], "pattern": "^a$"}, ["a"]),
        ({"minLength": 2}, ["ab", "abc", "x\ny"]),
        ({"maxLength": 1}, ["", "a", "b"]),
        ({"minLength": 1, "maxLength": 2}, ["a", "b", "ab"]),
        ({"pattern": "b"}, ["b", "ab", "abc"]),
        # Whether `.` and `$` match at a line break differs between engines.
        ({"pattern": "y"}, []),
    ],
)
def test_a_name_is_allowed_by_its_type_values_pattern_and_length(schema: Any, names: list[str]) -> None:
    assert allowed(schema) == names


@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        ({"const": "a"}, ['{"a":1}', "{}"]),
        ({"enum": ["a", "ab"]}, ['{"a":1}', '{"ab":1}', "{}"]),
        ({"pattern": "^a"}, ['{"a":1}', '{"ab":1}', '{"abc":1}', "{}"]),
        ({"minLength": 2}, ['{"ab":1}', '{"abc":1}', "{}"]),
        ({"maxLength": 2}, ['{"a":1}', '{"b":1}', '{"ab":1}', '{"":1}', "{}"]),
        (False, ["{}"]),
        (True, ['{"a":1}', '{"b":1}', '{"ab":1}', '{"abc":1}', '{"":1}', "{}"]),
    ],
)
def test_an_object_has_only_such_names(schema: Any, texts: list[str]) -> None:
    every = ['{"a":1}', '{"b":1}', '{"ab":1}', '{"abc":1}', '{"":1}', "{}"]
    assert taken({"type": "object", "propertyNames": schema}, every) == texts


@pytest.mark.parametrize(
    ("schema", "code", "says"),
    [
        (5, "invalid_request", "must be a schema"),
        ({"pattern": 5}, "invalid_request", "`pattern` must be a string"),
        ({"enum": "a"}, "invalid_request", "`enum` must be a list"),
        ({"minLength": -1}, "invalid_request", "must be a whole number"),
        ({"minLength": MAX_NAME_LENGTH + 1}, "schema_too_complex", "may be at most"),
        ({"pattern": "^a", "minLength": 2}, "unsupported_schema", "both a `pattern` and a length"),
        ({"not": {"const": "a"}}, "unsupported_schema", "is enforced only with"),
        ({"minLenght": 2}, "unsupported_schema", "unknown keyword `minLenght`"),
    ],
)
def test_names_that_cannot_be_enforced_are_refused(schema: Any, code: str, says: str) -> None:
    error = refusal({"type": "object", "propertyNames": schema})
    assert (error.code, path_in(error)) == (code, "propertyNames")
    assert says in error.message


def test_a_misspelt_keyword_is_refused_with_the_one_meant() -> None:
    with pytest.raises(PartError) as caught:
        read_names({"minLenght": 2})
    assert caught.value.hint == "did you mean `minLength`?"
