"""GBNF grammars mean what they mean in llama.cpp, or are refused with a position."""

from __future__ import annotations

import json
import re

import pytest

from edgekit.errors import RequestError
from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.gbnf import MAX_NESTING, MAX_REGEX_CHARS, MAX_TIMES, gbnf_to_lark, is_gbnf
from edgekit.generation.types import ResponseFormat
from tests.generation.grammar.kits import kit, text_of, walk

# llama.cpp's grammars/json.gbnf.
JSON = r"""root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""


def takes(source: str, text: str) -> bool:
    """Whether output under a grammar may be this text."""
    used = kit("byte_level")
    matcher = used.compiler.compile(ResponseFormat("grammar", source)).matcher()
    tokens = used.tokenizer.encode(text, obey_special=False)
    count = 0
    while count < len(tokens) and matcher.fits(tokens[count : count + 1]):
        matcher.accept(tokens[count])
        count += 1
    return count == len(tokens) and matcher.accepting


@pytest.mark.parametrize(
    ("source", "pattern", "texts"),
    [
        ('root ::= [a-z]* "b"', "[a-z]*b", ["b", "abb", "a", ""]),
        ('root ::= word "b"\nword ::= [a-z]*', "[a-z]*b", ["b", "abb", "a"]),
        ('root ::= ("a" | "ab") "bc"', "(a|ab)bc", ["abc", "abbc", "ac"]),
        ('root ::= "ab"{2} "c"?', "(ab){2}c?", ["abab", "ababc", "abb", "ab"]),
        ('root ::= "ab"* [^x\\n]', "(ab)*[^x\\n]", ["ababy", "x", "y", "ab"]),
        ('root ::= . "\\u00e9" "\\x41" [\\]\\-a]', "(?s:.)éA[\\]\\-a]", ["\néA]", "xéA-", "éA]"]),
        ('root ::= a-b | c_D # comment\n  \na-b ::= "1"\nc_D ::= [0-9]{2,3}', "1|[0-9]{2,3}", ["1", "12", "1234"]),
        ('root ::= "" | "::=" | "start: x"', "|::=|start: x", ["", "::=", "start: x", ":"]),
        ('# start: "x"\n\nroot ::= "a"', "a", ["a", "x"]),
    ],
)
def test_a_grammar_means_what_a_regular_expression_says(source: str, pattern: str, texts: list[str]) -> None:
    for text in texts:
        assert takes(source, text) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        ('root ::= "(" root ")" | word\nword ::= [a-z]+ "b"', ["(ab)", "((abb))"], ["(a)", "(b", "()"]),
        ('root ::= ("a" | "ab") root | "c"', ["ac", "abc", "aabac"], ["ab", "b"]),
        ('root ::= list\nlist ::= item | list "," item\nitem ::= [0-9]+', ["1", "1,23,4"], ["1,", ",1"]),
        ('root ::= "x" root "y" |', ["", "xy", "xxyy"], ["x", "xyy"]),
    ],
)
def test_a_recursive_grammar_is_enforced(source: str, good: list[str], bad: list[str]) -> None:
    assert all(takes(source, text) for text in good)
    assert not any(takes(source, text) for text in bad)


def test_llama_cpps_json_grammar_generates_json() -> None:
    used = kit("byte_level")
    grammar = used.compiler.compile(ResponseFormat("grammar", JSON))
    assert takes(JSON, '{"a": [1, -2.5e3, true, null, "\\u00e9"], "b": {}}')
    assert not takes(JSON, '{"a": [1,]}')
    ended = 0
    for seed in range(12):
        tokens, end = walk(used, grammar, seed, max_tokens=200, hurry=0.8)
        if end:
            ended += 1
            assert isinstance(json.loads(text_of(used, tokens)), dict)
    assert ended > 4


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("root ::= (", "expected `)` (line 1, column 11)"),
        ('root ::= "a"\nb ::= "x', "this literal has no end (line 2, column 7)"),
        ("root ::= [a", "this class has no end (line 1, column 10)"),
        ("root ::= []", "this class is empty (line 1, column 10)"),
        ("root ::= [b-a]", "out of order (line 1, column 10)"),
        ('root ::= "\\q"', "unknown escape `\\q` (line 1, column 11)"),
        ('root ::= a\n\na ::= "x" bc', "the rule `bc` is not defined (line 3, column 11)"),
        ("root ::= {3}", "unexpected `{` (line 1, column 10)"),
        ('root ::= "a"{3,1}', "below its minimum (line 1, column 13)"),
        ('root ::= "a"{x}', "expected `{m}`, `{m,}` or `{m,n}` (line 1, column 13)"),
        ('root ::= "a" ! "b"', "unexpected `!` (line 1, column 14)"),
        ('root ::= "a")', "the end of the rule (line 1, column 13)"),
        ('root ::= "a"\nroot ::= "b"', "defined twice (line 2, column 1)"),
        ('root ::= "a"\nstart: "b"', "expected `::=` (line 2, column 6)"),
        ('a ::= "x"', "no rule `root`"),
    ],
)
def test_a_malformed_grammar_is_refused_with_its_position(source: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").compiler.compile(ResponseFormat("grammar", source))
    assert caught.value.code == "invalid_request"
    assert says in caught.value.message


@pytest.mark.parametrize(
    "source",
    [
        'start: "a ::= b"',
        "start: /x ::= y/",
        "// root ::= x\nstart: A\nA: /a/",
        '# root ::= "x"\nstart: "a"',
        'start: "a"\n%ignore /[ ]/ // root ::= x\n',
        '%llguidance {}\nstart: "::="',
        'start: %json {"const": "root ::= x"}',
    ],
)
def test_lark_is_not_taken_for_gbnf(source: str) -> None:
    assert not is_gbnf(source)


@pytest.mark.parametrize(
    "source",
    [
        'root ::= "a"',
        ' \n\troot::="a"',
        '# x\n# y\nroot ::= "a"',
        '# start: "x"\n root ::= "a"',
        'a_B-1 ::= "a"\nroot ::= a_B-1',
    ],
)
def test_a_first_rule_of_gbnf_makes_a_grammar_gbnf(source: str) -> None:
    assert is_gbnf(source)


LETTERS = [
    "",
    "a",
    "b",
    "c",
    "aa",
    "ab",
    "ba",
    "aaa",
    "abab",
    "aaaa",
    "aaaaaa",
    "aaaaaaa",
    "abc",
    "-",
    "]",
    "^",
    "\n",
    '"',
    "\\",
    "é",
]


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        ('root ::= "a"*', "a*"),
        ('root ::= "a"+', "a+"),
        ('root ::= "a"?', "a?"),
        ('root ::= "a" *', "a*"),
        ('root ::= "a"{2}', "a{2}"),
        ('root ::= "a"{ 2 , }', "a{2,}"),
        ('root ::= "a"{2,3}', "a{2,3}"),
        ('root ::= "a"{2,2}', "a{2}"),
        ('root ::= "a"{0}', ""),
        ('root ::= "a"{2}{3}', "(?:a{2}){3}"),
        ('root ::= "a"{2}?', "(?:a{2})?"),
        ('root ::= "a" "b"*', "ab*"),
        ('root ::= "ab"*', "(?:ab)*"),
        ("root ::= [a-b] [^a]", "[ab][^a]"),
        ("root ::= [a-c]{3}", "[a-c]{3}"),
        ("root ::= [a-a]", "a"),
        ("root ::= [a-]", "[a-]"),
        ("root ::= [-a]", "[-a]"),
        ("root ::= [\\]\\^]", r"[\]\^]"),
        ("root ::= [^\\n]", "[^\n]"),
        ('root ::= "\\"" | "\\\\" | "\\n"', r'"|\\|\n'),
        ('root ::= "\\x61\\u0062\\U00000063"', "abc"),
        ("root ::= [\\x61-\\x62]", "[ab]"),
        ("root ::= .", "(?s:.)"),
        ('root ::= ("a" |\n "b")\n', "a|b"),
        ('root ::= (\n "a"\n "b" # both\n)', "ab"),
        ('root ::= "a" |\n  "b"', "a|b"),
        ('root ::= ("a" | ) "b"', "(?:a|)b"),
        ('root ::= x y\n\n# y first\ny ::= "b"\nx ::= "a"', "ab"),
        ('root ::=\n  "a"', "a"),
        ('root ::= "a"\r\n\r\n', "a"),
        ('root ::= x{2}\nx ::= "a" | "b"', "[ab]{2}"),
    ],
)
def test_a_rule_matches_what_its_regular_expression_matches(source: str, pattern: str) -> None:
    assert [text for text in LETTERS if takes(source, text)] == [
        text for text in LETTERS if re.fullmatch(pattern, text)
    ]


@pytest.mark.parametrize(
    "source",
    [
        'root ::= "\\ud800"',
        'root ::= "\\uDFFF"',
        'root ::= "\\U00110000"',
        'root ::= "\\x4"',
        'root ::= "\\u00g0"',
        'root ::= "\\',
        "root ::= [\\",
        'root ::= "a\nb"',
        "root ::= [a\nb]",
        'root ::= "a"{,3}',
        "root ::= <a b>",
        'root "a"',
        '"a"',
    ],
)
def test_other_syntax_is_malformed(source: str) -> None:
    with pytest.raises(PartError) as caught:
        gbnf_to_lark(source)
    assert caught.value.code == "invalid_request"


def test_escapes_reach_up_to_the_last_character() -> None:
    assert takes('root ::= "\\U0010ffff"', "\U0010ffff")
    assert takes('root ::= "\\ud7ff\\ue000"', "\ud7ff\ue000")


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("root ::= !", "(line 1, column 10)"),
        ('root ::= "a"\n\nb ::= !', "(line 3, column 7)"),
        ('root ::= "a"\n!', "(line 2, column 1)"),
        ('root ::= "\\q"', "(line 1, column 11)"),
        ('root ::= "\ud800"', "(line 1, column 11)"),
        ("root ::= (", "(line 1, column 11)"),
    ],
)
def test_an_error_names_line_and_column(source: str, place: str) -> None:
    with pytest.raises(PartError) as caught:
        gbnf_to_lark(source)
    assert place in caught.value.message


@pytest.mark.parametrize(
    ("largest", "larger"),
    [
        (f'root ::= "a"{{{MAX_TIMES}}}', f'root ::= "a"{{{MAX_TIMES + 1}}}'),
        (f'root ::= "a"{{1,{MAX_TIMES}}}', f'root ::= "a"{{1,{MAX_TIMES + 1}}}'),
        (
            f"root ::= {'(' * MAX_NESTING}[a]{')' * MAX_NESTING}",
            f"root ::= {'(' * (MAX_NESTING + 1)}[a]{')' * (MAX_NESTING + 1)}",
        ),
        (f"root ::= {'([a])' * (MAX_NESTING + 1)}", f"root ::= {'(' * (MAX_NESTING + 1)}"),
    ],
)
def test_repetitions_and_groups_have_limits(largest: str, larger: str) -> None:
    assert gbnf_to_lark(largest)
    with pytest.raises(PartError) as caught:
        gbnf_to_lark(larger)
    assert caught.value.code == "schema_too_complex"


def test_a_long_grammar_is_written_as_rules_and_means_the_same() -> None:
    letters = "ab" * (MAX_REGEX_CHARS // 2)
    inside = len("(?:)")
    assert gbnf_to_lark(f'root ::= "{letters[inside:]}"').startswith("start: /")
    assert not gbnf_to_lark(f'root ::= "{letters[inside - 1 :]}"').startswith("start: /")
    short, long = (
        'root ::= x{2}\nx ::= "a" | "b"?',
        f'root ::= x{{2}} | y\nx ::= "a" | "b"?\ny ::= "{"c" * MAX_REGEX_CHARS}"',
    )
    for text in ("", "a", "ab", "ba", "aaa"):
        assert takes(long, text) is takes(short, text), text


def test_rules_may_be_chained_far() -> None:
    chain = "\n".join(f"r{at} ::= r{at + 1}" for at in range(MAX_NESTING + 20))
    source = f'root ::= r0\n{chain}\nr{MAX_NESTING + 20} ::= "a"'
    assert takes(source, "a")
    assert not takes(source, "b")


def test_a_token_stands_for_itself() -> None:
    source = 'root ::= "a" <|python_tag|>'
    assert "<|python_tag|>" in gbnf_to_lark(source)
    assert takes('root ::= "a" <|python_tag|> | "b"', "b")
