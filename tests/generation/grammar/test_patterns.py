"""Patterns mean what they mean in ECMA 262 and in Python, or are refused."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.patterns import MAX_PATTERN_CHARS, full_match, search
from edgekit.generation.request import ResponseFormat
from tests.generation.grammar.kits import kit, text_of, walk
from tests.generation.grammar.schemas import PATTERNS

_ATOMS = st.sampled_from(
    [
        "a",
        "b",
        ".",
        r"\d",
        r"\W",
        r"\S",
        "[ab]",
        "[^a-c]",
        r"[\w-]",
        r"[^\s\d]",
        r"\.",
        r"\x41",
        "é",
        "/",
        r"\/",
        "]",
        "}",
        "-",
    ]
)
_REPEATS = st.sampled_from(["", "", "*", "+", "?", "*?", "{2}", "{1,3}", "{0,2}?"])


@st.composite
def _patterns(draw: st.DrawFn, depth: int = 2) -> str:
    def part(left: int) -> str:
        if left and draw(st.integers(0, 3)) == 0:
            inner = "|".join(part(left - 1) for _ in range(draw(st.integers(1, 3))))
            return f"({inner})" + draw(_REPEATS)
        return "".join(draw(_ATOMS) + draw(_REPEATS) for _ in range(draw(st.integers(0, 3))))

    return draw(st.sampled_from(["", "^"])) + part(depth) + draw(st.sampled_from(["", "$", "|x", "$|^y"]))


@settings(max_examples=150, deadline=None)
@given(pattern=_patterns(), seed=st.integers(0, 2**32))
def test_a_text_made_under_a_pattern_is_found_by_python(pattern: str, seed: int) -> None:
    used = kit("byte_level")
    grammar = used.compiler.compile(ResponseFormat("json_schema", {"type": "string", "pattern": pattern}))
    tokens, ended = walk(used, grammar, seed, most=300)
    if ended:
        assert re.search(pattern, json.loads(text_of(used, tokens)))


@settings(max_examples=80, deadline=None)
@given(pattern=_patterns(), seed=st.integers(0, 2**32))
def test_an_answer_under_a_regular_expression_matches_it_from_end_to_end(pattern: str, seed: int) -> None:
    used = kit("byte_level")
    if not pattern:
        return
    grammar = used.compiler.compile(ResponseFormat("regex", pattern))
    tokens, ended = walk(used, grammar, seed, most=300)
    if ended:
        assert re.fullmatch(pattern, text_of(used, tokens))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_text_that_a_pattern_allows_can_be_written(pattern: str) -> None:
    used = kit("byte_level")
    grammar = used.compiler.compile(ResponseFormat("json_schema", {"type": "string", "pattern": pattern}))
    assert any(walk(used, grammar, seed, most=300)[1] for seed in range(8))


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"a(?=b)", "lookaround"),
        (r"(?<!a)b", "lookaround"),
        (r"(?i)abc", "lookaround or flags"),
        (r"\bword", r"`\b`"),
        (r"(a)\1", r"`\1`"),
        (r"a^b", "an anchor elsewhere"),
        (r"(a$)b", "an anchor in a group"),
        (r"a{,3}", "no repetition"),
        (r"*a", "repeats nothing"),
        (r"a**", "two repetitions"),
        (r"(a", "an open group"),
        (r"a)", "a stray"),
        (r"[a", "an open class"),
        (r"[]a]", "an empty class"),
        (r"[z-a]", "without order"),
        (r"\p{Script=Greek}", "general category"),
        (r"\cA", r"`\c`"),
        (r"\ud800", r"`\u`"),
        ("a\\", "`\\`"),
        (r"a{3,2}", "ends before it begins"),
    ],
)
def test_what_is_not_enforced_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(PartError) as caught:
        search(pattern)
    assert says in caught.value.message
    assert caught.value.code == "unsupported_schema"


@pytest.mark.parametrize(
    "pattern", ["(?:a{1000}){1000}", "a" * (MAX_PATTERN_CHARS + 1), "(" * 100 + "a" + ")" * 100, "a{20000}"]
)
def test_a_pattern_that_grows_is_too_complex(pattern: str) -> None:
    with pytest.raises(PartError) as caught:
        full_match(pattern)
    assert caught.value.code == "schema_too_complex"


def test_set_operators_of_other_engines_are_plain_characters() -> None:
    used = kit("byte_level")
    grammar = used.compiler.compile(ResponseFormat("regex", "[a&&b]+"))
    seen = {char for seed in range(40) for char in text_of(used, walk(used, grammar, seed, most=20)[0])}
    assert seen == set("a&b")


def test_a_refused_pattern_names_its_place() -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").schema({"type": "object", "properties": {"p": {"type": "string", "pattern": r"\bx"}}})
    assert caught.value.message.startswith("#/properties/p/pattern: ")
    assert caught.value.param == "response_format"
