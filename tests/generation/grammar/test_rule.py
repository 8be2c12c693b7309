"""A response format as part of a larger grammar says the same as alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from edgekit.errors import RequestError
from edgekit.generation.grammar.rule import format_rule
from edgekit.generation.request import ResponseFormat
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


def test_a_grammar_is_no_part_of_another() -> None:
    with pytest.raises(RequestError) as caught:
        format_rule(ResponseFormat("grammar", 'start: "a"'))
    assert caught.value.param == "response_format"


@pytest.mark.parametrize("value", [(), ("",), 5])
def test_a_choice_is_checked_here_too(value: object) -> None:
    with pytest.raises(RequestError):
        format_rule(ResponseFormat("choice", value))
