from __future__ import annotations

import json
from typing import Any

import pytest

from edgekit.daemon.api import parse_chat
from edgekit.daemon.api.formats import ALIASES
from edgekit.daemon.api.ollama import parse_ollama_chat
from edgekit.errors import RequestError
from edgekit.generation.types import ResponseFormat
from tests.generation.grammar.kits import kit

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
OPENAIS = {"name": "thing", "schema": SCHEMA, "strict": True, "description": "A thing."}


def parse(fields: dict[str, Any]) -> ResponseFormat | None:
    body = {"messages": [{"role": "user", "content": "Hello"}], **fields}
    return parse_chat(body, request_id="r")[0].response_format


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ResponseFormat("json_object")),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, ResponseFormat("json_schema", SCHEMA)),
        (
            {"response_format": {"type": "json_schema", "json_schema": OPENAIS}},
            ResponseFormat("json_schema", SCHEMA, "thing"),
        ),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, ResponseFormat("json_schema", SCHEMA)),
        ({"response_format": {"type": "regex", "regex": "a+"}}, ResponseFormat("regex", "a+")),
        ({"response_format": {"type": "grammar", "grammar": 'start: "a"'}}, ResponseFormat("grammar", 'start: "a"')),
        ({"response_format": {"type": "choice", "choice": ["a", "b"]}}, ResponseFormat("choice", ("a", "b"))),
        ({"guided_json": SCHEMA}, ResponseFormat("json_schema", SCHEMA)),
        ({"guided_json": '{"type": "string"}'}, ResponseFormat("json_schema", {"type": "string"})),
        ({"json_schema": SCHEMA}, ResponseFormat("json_schema", SCHEMA)),
        ({"guided_regex": "a"}, ResponseFormat("regex", "a")),
        ({"regex": "a"}, ResponseFormat("regex", "a")),
        ({"guided_choice": ["x"]}, ResponseFormat("choice", ("x",))),
        ({"guided_grammar": "start: /a/"}, ResponseFormat("grammar", "start: /a/")),
        ({"structured_outputs": {"json": SCHEMA}}, ResponseFormat("json_schema", SCHEMA)),
        ({"structured_outputs": {"regex": "a"}}, ResponseFormat("regex", "a")),
        ({"structured_outputs": {"choice": ["a"]}}, ResponseFormat("choice", ("a",))),
        ({"structured_outputs": {"grammar": "start: /a/"}}, ResponseFormat("grammar", "start: /a/")),
        ({"structured_outputs": {"json_object": True}}, ResponseFormat("json_object")),
        ({"structured_outputs": {}}, None),
        ({"structured_outputs": []}, None),
        ({"structured_outputs": {"disable_fallback": True, "disable_additional_properties": False}}, None),
        ({"grammar": 'root ::= "a"'}, ResponseFormat("grammar", 'root ::= "a"')),
        *(({name: ""}, None) for name in ALIASES),
    ],
)
def test_every_spelling_of_a_format_is_parsed(fields: dict[str, Any], expected: ResponseFormat | None) -> None:
    assert parse(fields) == expected


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": "json"}, "invalid_request", "response_format"),
        ({"response_format": {"schema": {}}}, "invalid_request", "response_format.type"),
        ({"response_format": {"type": ["text"]}}, "invalid_request", "response_format.type"),
        ({"response_format": {"type": {}}}, "invalid_request", "response_format.type"),
        ({"response_format": {"type": "xml"}}, "unsupported_parameter", "response_format.type"),
        ({"response_format": {"type": "json_object", "shema": {}}}, "unsupported_parameter", "response_format.shema"),
        ({"response_format": {"type": "json_schema"}}, "invalid_request", "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "invalid_request",
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "shema": {}}}},
            "unsupported_parameter",
            "response_format.json_schema.shema",
        ),
        ({"response_format": {"type": "regex", "regex": 5}}, "invalid_request", "response_format.regex"),
        ({"response_format": {"type": "choice", "choice": []}}, "invalid_request", "response_format.choice"),
        ({"response_format": {"type": "choice", "choice": ["a", ""]}}, "invalid_request", "response_format.choice"),
        ({"guided_json": "{"}, "invalid_request", "guided_json"),
        ({"guided_json": '{"a": "\\ud800"}'}, "invalid_request", "guided_json"),
        ({"guided_json": 5}, "invalid_request", "guided_json"),
        ({"guided_choice": "a"}, "invalid_request", "guided_choice"),
        ({"response_format": {"type": "regex", "regex": ""}}, "invalid_request", "response_format.regex"),
        ({"structured_outputs": {"jason": {}}}, "unsupported_parameter", "structured_outputs.jason"),
        ({"structured_outputs": {"choice": [1]}}, "invalid_request", "structured_outputs.choice[0]"),
        (
            {"structured_outputs": {"disable_any_whitespace": True}},
            "unsupported_parameter",
            "structured_outputs.disable_any_whitespace",
        ),
        ({"grammar": 5}, "invalid_request", "grammar"),
    ],
)
def test_an_invalid_format_is_named_by_its_path(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(fields)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert "\n" not in caught.value.message


UNENFORCED = {"type": "object", "properties": {"a": {"type": "array", "contains": {}}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": UNENFORCED}}}, "json_schema.schema"),
        ({"response_format": {"type": "json_object", "schema": UNENFORCED}}, "schema"),
        ({"response_format": {"type": "regex", "regex": "a(?=b)"}}, "regex"),
        ({"response_format": {"type": "grammar", "grammar": "start: nowhere"}}, "grammar"),
        ({"response_format": {"type": "choice", "choice": ["a" * 70_000]}}, "choice"),
        ({"guided_json": UNENFORCED}, ""),
        ({"guided_regex": "a(?=b)"}, ""),
        ({"guided_grammar": "start: nowhere"}, ""),
        ({"guided_choice": ["a" * 70_000]}, ""),
        ({"json_schema": UNENFORCED}, ""),
        ({"json_schema": json.dumps(UNENFORCED)}, ""),
        ({"regex": "a(?=b)"}, ""),
        ({"structured_outputs": {"json": UNENFORCED}}, "json"),
        ({"structured_outputs": {"regex": "a(?=b)"}}, "regex"),
        ({"format": UNENFORCED}, ""),
    ],
)
def test_a_format_that_cannot_be_enforced_is_refused_by_the_field_that_contains_it(
    fields: dict[str, Any], param: str
) -> None:
    (field,) = fields
    path = f"{field}.{param}" if param else field
    if field == "format":
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}).encode()
        request = parse_ollama_chat(body, request_id="r", client="", context_length=9).request
        given = request.response_format if request is not None else None
    else:
        given = parse(fields)
    assert given is not None
    with pytest.raises(RequestError) as caught:
        kit("byte_level").compiler.compile(given)
    assert caught.value.param == path
    if given.kind == "json_schema":
        assert caught.value.message == f"`{path}.properties.a.contains`: `contains` is not enforced"


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}, "guided_regex": "a"},
        {"guided_json": {}, "regex": "a"},
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
    ],
)
def test_two_formats_contradict_each_other(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="both set the response format") as caught:
        parse(fields)
    assert caught.value.param is not None


def test_the_number_of_choices_is_not_limited_here() -> None:
    texts = [f"item {number}" for number in range(1500)]
    assert parse({"guided_choice": texts}) == ResponseFormat("choice", tuple(texts))
