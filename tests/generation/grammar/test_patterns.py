"""Patterns match as in ECMA 262 and in Python, or are refused."""

from __future__ import annotations

import json
import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.patterns import (
    MAX_PATTERN_CHARS,
    MAX_PATTERN_DEPTH,
    MAX_PATTERN_SIZE,
    full_match,
    literal,
    search,
    searches,
)
from edgekit.generation.types import ResponseFormat
from tests.generation.grammar.kits import kit, text_of, walk
from tests.generation.grammar.schemas import PATTERNS
from tests.generation.grammar.test_schema import taken, takes

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
def _bodies(draw: st.DrawFn, depth: int) -> str:
    def part(left: int) -> str:
        if left and draw(st.integers(0, 3)) == 0:
            inner = "|".join(part(left - 1) for _ in range(draw(st.integers(1, 3))))
            return f"({inner})" + draw(_REPEATS)
        return "".join(draw(_ATOMS) + draw(_REPEATS) for _ in range(draw(st.integers(0, 3))))

    return part(depth)


@st.composite
def _patterns(draw: st.DrawFn) -> str:
    return draw(st.sampled_from(["", "^"])) + draw(_bodies(2)) + draw(st.sampled_from(["", "$", "|x", "$|^y"]))


LOOKS = st.sampled_from(
    [
        "(?!a)",
        r"(?!ab[^\d])",
        "(?!-{2}|b)",
        "(?=.*b)",
        "(?=a|b$)",
        "(?=^a)(?!ab)",
        r"(?!\s*$)",
        "(?![ab]+$)",
        "(?!.*b$)",
        "(?!.*bb)",
        "(?!.*-)",
    ]
)
GROUPS = st.sampled_from(["(^BODY|OTHER)", "(?:BODY$|OTHER)", "(^BODY$)|(OTHER)", "^(^OTHER)", "(BODY)(OTHER$)"])
OTHERS = st.sampled_from(["a", "b+", "-a", "^a", "b$", "^-$", "(^a|b)"])


@st.composite
def _with_anchors(draw: st.DrawFn) -> str:
    """Patterns with lookaround at the start, or anchors in groups."""
    body = draw(_bodies(1))
    if draw(st.booleans()):
        return "^" + draw(LOOKS) + body + draw(st.sampled_from(["", "$", r"(?![\s\S])"]))
    group = draw(GROUPS).replace("BODY", body).replace("OTHER", draw(OTHERS))
    return draw(st.sampled_from(["GROUP", "GROUP$", "^GROUP", "(GROUP)"])).replace("GROUP", group)


@settings(max_examples=150, deadline=None)
@given(pattern=_patterns(), seed=st.integers(0, 2**32))
def test_a_string_generated_under_a_pattern_is_found_by_python(pattern: str, seed: int) -> None:
    used = kit("byte_level")
    grammar = used.compiler.compile(ResponseFormat("json_schema", {"type": "string", "pattern": pattern}))
    tokens, ended = walk(used, grammar, seed, max_tokens=300)
    if ended:
        assert re.search(pattern, json.loads(text_of(used, tokens)))


@settings(max_examples=150, deadline=None)
@given(pattern=_with_anchors() | _patterns(), seed=st.integers(0, 2**32))
def test_a_pattern_with_lookaround_or_inner_anchors_means_what_it_means_to_python(pattern: str, seed: int) -> None:
    used = kit("byte_level")
    texts = ["".join(chars) for length in range(4) for chars in product("ab- 1", repeat=length)]
    found = [text for text in texts if re.search(pattern, text)]
    try:
        grammar = used.compiler.compile(ResponseFormat("json_schema", {"type": "string", "pattern": pattern}))
    except RequestError as error:
        # No string matches, or an anchor is where it cannot be enforced.
        assert "anchor" in error.message or ("satisf" in error.message.lower() and not found), error.message  # noqa: PT017
        return
    assert [text for text in texts if takes({"type": "string", "pattern": pattern}, json.dumps(text))] == found
    tokens, ended = walk(used, grammar, seed, max_tokens=300)
    if ended:
        assert re.search(pattern, json.loads(text_of(used, tokens)))


@settings(max_examples=80, deadline=None)
@given(pattern=_patterns(), seed=st.integers(0, 2**32))
def test_an_answer_under_a_regular_expression_matches_it_from_end_to_end(pattern: str, seed: int) -> None:
    used = kit("byte_level")
    if not pattern:
        return
    grammar = used.compiler.compile(ResponseFormat("regex", pattern))
    tokens, ended = walk(used, grammar, seed, max_tokens=300)
    if ended:
        assert re.fullmatch(pattern, text_of(used, tokens))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_string_that_a_pattern_allows_can_be_generated(pattern: str) -> None:
    used = kit("byte_level")
    grammar = used.compiler.compile(ResponseFormat("json_schema", {"type": "string", "pattern": pattern}))
    assert any(walk(used, grammar, seed, max_tokens=300)[1] for seed in range(8))


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"a(?=b)", "lookaround"),
        (r"(?<!a)b", "lookaround"),
        (r"(?i)abc", "lookaround or flags"),
        (r"\bword", r"`\b`"),
        (r"(a)\1", r"`\1`"),
        (r"a^b", "an anchor that is not at an end"),
        (r"(a$)b", "an anchor that is not at an end"),
        (r"a(^b)", "an anchor that is not at an end"),
        (r"((a|b$)c)d", "an anchor that is not at an end"),
        (r"(a$)*", "an anchor in a repeated group"),
        (r"^(?!(?:ab)*c)d", "lookaround whose opposite"),
        (r"^(?!a)b|c", "lookaround in one of several"),
        (r"^a(?!b)", "lookaround"),
        (r"[^\ud800]", r"`\u`"),
        ("[^\ud800]", "half of a surrogate pair"),
        (r"a{,3}", "not a repetition"),
        (r"*a", "nothing to repeat"),
        (r"a**", "two repetitions"),
        (r"(a", "an unclosed group"),
        (r"a)", "an unmatched"),
        (r"[a", "an unclosed class"),
        (r"[]a]", "an empty class"),
        (r"[z-a]", "out of order"),
        (r"\p{Script=Greek}", "general category"),
        (r"\cA", r"`\c`"),
        (r"\ud800", r"`\u`"),
        ("a\\", "`\\`"),
        (r"a{3,2}", "maximum is below its minimum"),
    ],
)
def test_syntax_that_is_not_enforced_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(PartError) as caught:
        search(pattern)
    assert says in caught.value.message
    assert caught.value.code == "unsupported_schema"


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^(?!aws:)[a-z:]+$", ["aws", "a:aws:", "awz:"], ["aws:", "aws:a", ""]),
        (r"^(?![aA][wW][sS]:)[\p{L}:]*$", ["", "AWS", "é:"], ["aWs:x"]),
        # zod's, of an address of mail.
        (
            r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
            ["a@b.cd", "a.b+c@d.e.fg"],
            ["a..b@c.de", ".a@b.cd", "a.@b.cd", "a@b..cd", "a@b"],
        ),
        (r"^(?!\s*$).+$", ["a", " a "], [" ", "", "\u2003"]),
        (r"^(?=.{2,4}$)(?:[a-z]+-?)+$", ["ab", "a-b"], ["a", "abcde", "a--"]),
        (r"^\S(?:[\s\S]*\S)?(?![\s\S])", ["a", "a b", "a\nb"], ["a ", "a\n", ""]),
        (r"(^a[0-9]{2}$)|(^b$)", ["a12", "b"], ["a1", "xb", "ba12"]),
        (r"(^arn:(?:aws|aws-cn):s3:::)([a-z]+$)", ["arn:aws:s3:::b"], ["xarn:aws:s3:::b", "arn:aws:s3:::b1"]),
        (r"[\u0020-\uD7FF\uE000-\uFFFD\uD800\uDBFF-\uDC00\uDFFF\t]{2}", ["ab", "éé"], ["a", "\u0007\u0007"]),
        (r"^\P{C}+$", ["a é"], ["a\u0007", ""]),
    ],
)
def test_patterns_of_real_schemas(pattern: str, good: list[str], bad: list[str]) -> None:
    for text in (*good, *bad):
        assert takes({"type": "string", "pattern": pattern}, json.dumps(text, ensure_ascii=False)) is (text in good), (
            text
        )
    with pytest.raises(RequestError) as caught:
        kit("byte_level").schema({"type": "object", "patternProperties": {"^(?!a)b": {}}})
    assert "lookaround" in caught.value.message


@pytest.mark.parametrize(
    "pattern",
    ["(?:a{1000}){1000}", "a" * (MAX_PATTERN_CHARS + 1), "(" * 100 + "a" + ")" * 100, "a{20000}"],
)
def test_a_pattern_that_grows_is_too_complex(pattern: str) -> None:
    with pytest.raises(PartError) as caught:
        full_match(pattern)
    assert caught.value.code == "schema_too_complex"


def test_much_lookaround_is_too_complex() -> None:
    assert len(searches("^" + "(?=.{9})" * 8 + "a")) == 9
    with pytest.raises(PartError) as caught:
        searches("^" + "(?=.{9})" * 9 + "a")
    assert caught.value.code == "schema_too_complex"


def test_set_operators_of_other_engines_are_plain_characters() -> None:
    used = kit("byte_level")
    grammar = used.compiler.compile(ResponseFormat("regex", "[a&&b]+"))
    seen = {char for seed in range(40) for char in text_of(used, walk(used, grammar, seed, max_tokens=20)[0])}
    assert seen == set("a&b")


def test_a_refused_pattern_names_its_path() -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").schema({"type": "object", "properties": {"p": {"type": "string", "pattern": r"\bx"}}})
    assert caught.value.message.startswith("`response_format.properties.p.pattern`: ")
    assert caught.value.param == "response_format"


# What a pattern is tried on: short strings of few characters.
STRINGS = [
    *("", "a", "b", "c", "z", "A", "ab", "ba", "aa", "bb", "aab", "aba", "aaa", "aaaa", "aaaaa", "xax", "abab"),
    *(
        "0",
        "9",
        "12",
        "_",
        "-",
        "a-b",
        "^",
        "$",
        ".",
        "/",
        "]",
        "}",
        "{",
        "\\",
        "\t",
        "\n",
        "\b",
        "\x1f",
        " ",
        "é",
        "🗼",
        "|",
    ),
]


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "",
            "^$",
            "a",
            "^a",
            "a$",
            "^a$",
            "^ab|ba$",
            "^a|^b",
            "b$|a$",
            "^(a|b)$",
            "^(?:ab)+$",
            "(?P<n>a)b",
            "(?P<n1>ab)",
        ),
        *("^a*$", "^a+$", "^a?$", "^a{2}$", "^a{2,}$", "^a{1,}$", "^a{0,}$", "^a{2,4}$", "^a{0,1}$", "^a{0}$", "a{3}"),
        *("^a{1}$", "^a{1,1}$", "^a*?$", "^a+?$", "^a??$", "^a{2}?$", "^(ab){2}$", "^a{2,4}b?$", "a{2,3}$", "^a{2,3}"),
        *(".", "^.$", "^..$", "^[ab]$", "^[^ab]$", "^[a-c]+$", "^[a-a]$", "^[a-]$", "^[-a]$", "^[a\\-b]$", "^[ab-]+$"),
        *(
            r"^\d$",
            r"^\d+$",
            r"^[\d]$",
            r"^[\d_]$",
            r"^[^\n]$",
            r"^\.$",
            r"^\/$",
            r"^[\]]$",
            r"^\\$",
            r"^[\\]$",
            r"^\^$",
            r"^\$$",
        ),
        *(
            r"^\t$",
            r"^\n$",
            r"^[\t]$",
            r"^[\b]$",
            r"^\x41$",
            r"^\x1f$",
            r"^[\x61-\x63]$",
            r"^\u0061$",
            r"^\u00e9$",
            r"^\}$",
        ),
        *("^]$", "^}$", "^-$", "^/$", r"^\|$", r"^[|]$", "^é$", "^🗼$", "a|", "^(|a)$", "(a|b)$", "^(a|(b|c))$"),
    ],
)
def test_a_pattern_allows_the_strings_in_which_python_finds_it(pattern: str) -> None:
    texts = [json.dumps(text, ensure_ascii=False) for text in STRINGS]
    found = taken({"type": "string", "pattern": pattern}, texts)
    # Python's `$` matches before a line feed at the end too, that of ECMA 262 does not.
    python = re.compile(re.sub(r"(?<!\\)\$", r"\\Z", pattern))
    assert [json.loads(text) for text in found] == [text for text in STRINGS if python.search(text)]


@pytest.mark.parametrize(
    ("pattern", "allowed", "not_allowed"),
    [
        # Where engines differ, only what all of them match.
        (r"^\s$", [" ", "\t"], ["\ufeff", "a"]),
        (r"^\S$", ["a", "é"], [" ", "\ufeff"]),
        (r"^[^\s]$", ["a"], [" ", "\ufeff"]),
        (r"^[^\S]$", [" "], ["\ufeff", "a"]),
        (r"^\w$", ["a", "_", "0"], ["é", "-"]),
        (r"^\W$", ["-"], ["a", "é"]),
        (r"^[^\w]$", ["-"], ["a", "é"]),
        (r"^[^\W]$", ["a"], ["-", "é"]),
        (r"^\D$", ["a"], ["0", "٣"]),
        (r"^.$", ["a", "🗼"], ["\n", "\r", "\u2028"]),
        (r"^\p{Lu}$", ["A", "É"], ["a", "0"]),
        (r"^\P{Lu}$", ["a", "0"], ["A"]),
        (r"^[\p{Lu}0]$", ["A", "0"], ["a"]),
        (r"^[^\p{L}]$", ["0"], ["a"]),
        (r"^\u{1F5FC}$", ["🗼"], ["a"]),
        (r"^[\u{61}-\u{63}]$", ["a", "c"], ["d"]),
        (r"^\u{10FFFF}$", ["\U0010ffff"], ["a"]),
        (r"^\uD7FF\uE000$", ["\ud7ff\ue000"], ["a"]),
        (r"^\v\f\r$", ["\v\f\r"], ["a"]),
    ],
)
def test_an_escape_stands_for_the_characters_of_every_engine(
    pattern: str, allowed: list[str], not_allowed: list[str]
) -> None:
    texts = [json.dumps(text, ensure_ascii=False) for text in (*allowed, *not_allowed)]
    assert [json.loads(text) for text in taken({"type": "string", "pattern": pattern}, texts)] == allowed


@pytest.mark.parametrize(
    "pattern",
    [
        r"\u{110000}",
        r"\uDFFF",
        r"\x4",
        r"\u004",
        r"\a",
        r"\1",
        "[a-\\d]",
        "[\\d-a]x]",
        "a{2}{3}",
        "a+*",
        "?",
        "+",
        "{2}",
        "a|*",
        "[a",
    ],
)
def test_a_pattern_with_another_meaning_elsewhere_is_refused(pattern: str) -> None:
    if pattern == "[\\d-a]x]":
        # A hyphen after a class is a hyphen.
        assert search(pattern)
        return
    with pytest.raises(PartError) as caught:
        search(pattern)
    assert caught.value.code == "unsupported_schema"


def test_the_place_of_an_error_is_within_the_pattern() -> None:
    for pattern, place in (("a)", 1), ("ab[", 3), ("(a", 2), ("ab\\", 3)):
        with pytest.raises(PartError, match=f"near character {place}"):
            search(pattern)


@pytest.mark.parametrize(
    ("largest", "larger"),
    [
        ("a" * MAX_PATTERN_CHARS, "a" * (MAX_PATTERN_CHARS + 1)),
        ("(" * MAX_PATTERN_DEPTH + "a" + ")" * MAX_PATTERN_DEPTH, "(" * (MAX_PATTERN_DEPTH + 1) + "a" + ")" * 25),
        (f"a{{{MAX_PATTERN_SIZE}}}", f"a{{{MAX_PATTERN_SIZE + 1}}}"),
        (f"(?:ab){{{MAX_PATTERN_SIZE // 2}}}", f"(?:ab){{{MAX_PATTERN_SIZE // 2}}}c"),
        (f"(?:a|b){{{MAX_PATTERN_SIZE // 2}}}", f"(?:a|b){{{MAX_PATTERN_SIZE // 2 + 1}}}"),
        (f"a{{2,{MAX_PATTERN_SIZE}}}", f"a{{2,{MAX_PATTERN_SIZE}}}b*"),
        ("(a)" * 600, "(" * (MAX_PATTERN_DEPTH + 1) + "a" + ")" * (MAX_PATTERN_DEPTH + 1)),
        (f"(?:){{{MAX_PATTERN_SIZE}}}", f"(?:){{{MAX_PATTERN_SIZE + 1}}}"),
    ],
)
def test_a_pattern_may_have_a_size_and_not_more(largest: str, larger: str) -> None:
    assert full_match(largest)
    with pytest.raises(PartError) as caught:
        full_match(larger)
    assert caught.value.code == "schema_too_complex"


def test_a_literal_matches_itself_alone() -> None:
    every = ("a.b*", "[x]", "é\n", "\\d", "🗼", "axb", "1", "x")
    texts = [json.dumps(text, ensure_ascii=False) for text in every]
    for text in every:
        found = taken({"type": "string", "pattern": f"^{re.escape(text)}$"}, texts)
        assert found == [json.dumps(text, ensure_ascii=False)]
        used = kit("byte_level")
        grammar = used.compiler.compile_lark(f"start: /{literal(text)}/", param="response_format")
        tokens, ended = walk(used, grammar, seed=1)
        assert ended
        assert text_of(used, tokens) == text
