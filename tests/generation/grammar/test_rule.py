"""A response format constrains the same as part of a larger grammar and alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.grammar.rule import MAX_CHOICE_CHARS, MAX_CHOICES, format_rule
from edgekit.generation.types import ResponseFormat
from tests.generation.grammar.kits import KINDS, kit, text_of, walk


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_but_a_grammar_may_follow_a_word(kind: str) -> None:
    used = kit(kind)
    choices = ["a/b", 'x "y"', "Größe|", "c\nd"]
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    checks: list[tuple[ResponseFormat, Callable[[str], bool]]] = [
        (ResponseFormat("json_object"), lambda text: isinstance(json.loads(text), dict)),
        (ResponseFormat("json_schema", schema), lambda text: isinstance(json.loads(text)["n"], int)),
        (ResponseFormat("regex", r"\d+/[a-c]?"), lambda text: re.fullmatch(r"\d+/[a-c]?", text) is not None),
        (ResponseFormat("choice", choices), lambda text: text in choices),
    ]
    for wanted, check in checks:
        grammar = used.compiler.compile_lark(f'start: "so: " answer\nanswer: {format_rule(wanted)}', param="tools")
        for seed in range(6):
            tokens, ended = walk(used, grammar, seed)
            if ended:
                text = text_of(used, tokens)
                assert text.startswith("so: ")
                assert check(text.removeprefix("so: ")), text


def test_two_thousand_choices_are_one_expression() -> None:
    used = kit("byte_level")
    choices = tuple(f"item {number}" for number in range(2000))
    rule = format_rule(ResponseFormat("choice", choices))
    tokens, ended = walk(used, used.compiler.compile_lark(f"start: answer\nanswer: {rule}", param="tools"), 1)
    assert ended
    assert text_of(used, tokens) in choices


def test_a_grammar_cannot_be_part_of_another() -> None:
    with pytest.raises(RequestError) as caught:
        format_rule(ResponseFormat("grammar", 'start: "a"'))
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    ("kind", "value", "code"),
    [
        ("regex", "", "invalid_request"),
        ("regex", 5, "invalid_request"),
        ("regex", "(", "unsupported_schema"),
        ("regex", "a{9999}{9}", "unsupported_schema"),
        ("regex", "(?:a{999}){99}", "schema_too_complex"),
        ("choice", (), "invalid_request"),
        ("choice", ("a", ""), "invalid_request"),
        ("choice", "abc", "invalid_request"),
        ("choice", 5, "invalid_request"),
        ("choice", (5,), "invalid_request"),
        ("choice", ("a", "\ud83d"), "invalid_request"),
        ("choice", [str(number) for number in range(2001)], "schema_too_complex"),
        ("choice", ["a" * 40_000, "b" * 40_000], "schema_too_complex"),
    ],
)
def test_what_is_refused_as_a_part_is_refused_alone_with_the_same_message(kind: Any, value: object, code: str) -> None:
    wanted = ResponseFormat(kind, value)
    with pytest.raises(RequestError) as part:
        format_rule(wanted)
    with pytest.raises(RequestError) as alone:
        kit("byte_level").compiler.compile(wanted)
    assert (part.value.code, part.value.param) == (code, "response_format")
    assert str(alone.value) == str(part.value)
    assert (alone.value.code, alone.value.param, alone.value.hint) == (code, "response_format", part.value.hint)


@pytest.mark.parametrize("pattern", ["^$", "^(?:)$", "a{0}"])
def test_a_pattern_of_the_empty_string_is_a_pattern(pattern: str) -> None:
    wanted = ResponseFormat("regex", pattern)
    used = kit("byte_level")
    for grammar in (
        used.compiler.compile(wanted),
        used.compiler.compile_lark(f'start: "so" answer\nanswer: {format_rule(wanted)}', param="tools"),
    ):
        tokens, ended = walk(used, grammar, 1)
        assert ended
        assert text_of(used, tokens) in {"", "so"}


@pytest.mark.parametrize(
    ("largest", "larger"),
    [
        (["a"] * MAX_CHOICES, ["a"] * (MAX_CHOICES + 1)),
        (["a" * (MAX_CHOICE_CHARS - 1), "b"], ["a" * MAX_CHOICE_CHARS, "b"]),
    ],
)
def test_choices_may_be_as_many_and_as_long_as_the_limits(largest: list[str], larger: list[str]) -> None:
    assert format_rule(ResponseFormat("choice", largest)).startswith("/a")
    with pytest.raises(RequestError) as caught:
        format_rule(ResponseFormat("choice", larger))
    assert caught.value.code == "schema_too_complex"


@pytest.mark.parametrize("value", ["a", 5, [], [""], ["a", 1], ["\ud800"], ["a", "\udfff"]])
def test_a_choice_is_a_list_of_texts(value: object) -> None:
    with pytest.raises(RequestError) as caught:
        format_rule(ResponseFormat("choice", value))
    assert (caught.value.code, caught.value.param) == ("invalid_request", "response_format")


@pytest.mark.parametrize("value", ["", 5, None])
def test_a_regular_expression_is_a_text(value: object) -> None:
    with pytest.raises(RequestError) as caught:
        format_rule(ResponseFormat("regex", value))
    assert caught.value.code == "invalid_request"
    assert format_rule(ResponseFormat("regex", "^$")) == "/(?:)/"


def test_a_choice_given_twice_is_one() -> None:
    assert format_rule(ResponseFormat("choice", ["a", "b", "a"])) == "/a|b/"
