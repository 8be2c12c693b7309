"""Regular expressions, choices, and grammars of callers."""

from __future__ import annotations

import re

import pytest

from edgekit.errors import RequestError
from edgekit.generation.grammar import lark_json, lark_text
from edgekit.generation.grammar.lark import MAX_GRAMMAR_CHARS, MAX_REPEAT, MAX_RULES, prepare_lark, to_lark
from edgekit.generation.types import ResponseFormat
from tests.generation.grammar.kits import KINDS, PLAIN, kit, text_of, walk

CALL = {
    "type": "object",
    "properties": {"name": {"const": "add"}, "arguments": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    "required": ["name", "arguments"],
}
OTHER = {
    "type": "object",
    "properties": {"name": {"const": "address"}, "arguments": {"type": "null"}},
    "required": ["name"],
}


def fits(source: str, tokens: list[int], kind: str = "byte_level") -> tuple[int, bool]:
    """How many of the tokens a grammar accepts, and whether the output may end after them."""
    matcher = kit(kind).compiler.compile_lark(source, param="tools").matcher()
    count = matcher.fits(tokens)
    for token in tokens[:count]:
        matcher.accept(token)
    return count, matcher.accepting


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "choices", [["yes", "no", "yes, but"], ["Größe", "法", "a\nb", 'say "x"', "\\n", " lead"], ["one"]]
)
def test_a_choice_is_one_of_its_strings(kind: str, choices: list[str]) -> None:
    used = kit(kind)
    grammar = used.compiler.compile(ResponseFormat("choice", choices))
    seen = {text_of(used, tokens) for tokens, ended in (walk(used, grammar, seed) for seed in range(80)) if ended}
    assert seen == set(choices)


def test_many_choices_are_one_automaton() -> None:
    used = kit("byte_level")
    choices = [f"item {number}" for number in range(2000)]
    tokens, ended = walk(used, used.compiler.compile(ResponseFormat("choice", choices)), 3)
    assert ended
    assert text_of(used, tokens) in choices


@pytest.mark.parametrize("choices", [[], "yes", [1], [""], ["\ud800"], {"a": 1}])
def test_choices_that_are_not_a_list_of_strings_are_refused(choices: object) -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").compiler.compile(ResponseFormat("choice", choices))
    assert caught.value.code == "invalid_request"


def test_a_grammar_in_lark_syntax_is_enforced() -> None:
    used = kit("byte_level")
    source = 'start: expr\nexpr: expr "+" term | term\nterm: NUMBER | "(" expr ")"\nNUMBER: /[0-9]{1,3}/\n'
    grammar = used.compiler.compile(ResponseFormat("grammar", source))
    for seed in range(20):
        tokens, ended = walk(used, grammar, seed, max_tokens=200)
        if ended:
            text = text_of(used, tokens)
            assert re.fullmatch(r"[0-9+()]+", text)
            eval(re.sub(r"\b0+(?=\d)", "", text))  # noqa: S307


def test_a_gbnf_grammar_is_converted() -> None:
    used = kit("byte_level")
    source = 'root ::= "answer: " ("yes" | "no") number?\nnumber ::= " " [0-9]+\n'
    grammar = used.compiler.compile(ResponseFormat("grammar", source))
    for seed in range(10):
        tokens, ended = walk(used, grammar, seed)
        assert ended
        assert re.fullmatch(r"answer: (yes|no)( [0-9]+)?", text_of(used, tokens))


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("start: nowhere", "unsupported_schema", "unknown name"),
        ("start: /a(?=b)/", "unsupported_schema", "look-around"),
        ("root ::= (", "invalid_request", "not GBNF"),
        ('start: "a" <|nope|>', "invalid_request", "no token `<|nope|>`"),
        ('start: "a" <|im_end|>', "invalid_request", "ends the output"),
        ("start: a\na[max_tokens=5]: /x*/", "unsupported_schema", "`max_tokens`"),
        ('start: a\na[lazy, stop = "x"]: /y*/', "unsupported_schema", "`stop`"),
        ("start: @other", "invalid_request", "`@`"),
        ("start: %json {", "invalid_request", "not JSON"),
        ('start: %json {"type": "array", "contains": {}}', "unsupported_schema", "`%json 1.contains`: "),
        ('start: %json {} | /"/ %json {"not": 1}', "invalid_request", "`%json 2.not`: "),
        ('%llguidance {"allow_invalid_utf8": true}\nstart: "a"', "invalid_request", "`%llguidance`"),
        ("", "invalid_request", "a non-empty string"),
        (5, "invalid_request", "a non-empty string"),
    ],
)
def test_a_grammar_that_cannot_be_enforced_is_refused(source: object, code: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").compiler.compile(ResponseFormat("grammar", source))
    assert caught.value.code == code
    assert says in caught.value.message
    assert caught.value.param == "response_format"


def test_what_looks_like_a_schema_or_a_token_in_strings_and_comments_is_left_alone() -> None:
    used = kit("byte_level")
    source = r"""// %json {"uniqueItems": true} <|nope|>
start: "<|nope|> %json {" | B # <|nope|>
B: /<x\/"y>%json \{/
"""
    grammar = used.compiler.compile_lark(source, param="x")
    seen = {text_of(used, walk(used, grammar, seed)[0]) for seed in range(30)}
    assert seen == {"<|nope|> %json {", '<x/"y>%json {'}


@pytest.mark.parametrize("kind", KINDS)
def test_a_named_special_token_is_where_it_is_named_and_nowhere_else(kind: str) -> None:
    used = kit(kind)
    tag, calls = used.id("<|python_tag|>"), used.id("[TOOL_CALLS]")
    source = 'start: TEXT (<|python_tag|> "a" | <[TOOL_CALLS]> "e")\nTEXT: /[a-z<>|_]*/'
    for seed in range(30):
        tokens, ended = walk(used, used.compiler.compile_lark(source, param="tools"), seed, max_tokens=400)
        if ended:
            assert tokens[-2:] in ([tag, used.id("a")], [calls, used.id("e")])
            assert not set(tokens[:-2]) & used.tokenizer.special_ids


@pytest.mark.parametrize("name", [PLAIN, f'"{PLAIN}"'])
def test_an_added_token_that_is_not_special_is_its_text(name: str) -> None:
    used = kit("byte_level")
    source = f"start: {name} %json {{}}"
    matcher = used.compiler.compile_lark(source, param="tools").matcher()
    assert matcher.forced() == [used.id(PLAIN)]
    # Spelled out it is the same text, but it is forced as the token.
    spelled = [used.id(char) for char in PLAIN]
    assert matcher.fits(spelled) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_of_calls_are_enforced_after_free_text(kind: str) -> None:
    used = kit(kind)
    calls = [lark_json(schema, param="tools", path=f"tools[{at}]") for at, schema in enumerate((CALL, OTHER))]
    source = f"""start: call* tail
tail: TEXT
TEXT: /(.|\\n)*/
head[lazy]: TEXT {lark_text(PLAIN)}
call: head "\\n" (call_0 | call_1) "\\n</tool_call>"
call_0: {calls[0]}
call_1: {calls[1]}
"""

    # Encoded as within an output: encoding a complete text puts SentencePiece's space after an added token.
    tokens = used.compiler._prepared()[0].trie.tokenize_str
    good = tokens(
        'Let me see.<tool_call>\n{"name": "address"}\n</tool_call> and '
        '<tool_call>\n{"name": "add", "arguments": {"x": 1}}'
    )
    count, accepting = fits(source, good, kind)
    assert count == len(good)
    assert not accepting
    for wrong in ('{"name": "sub"}', '{"name": "add", "arguments": {"x": "1"}}', "no"):
        bad = tokens(f"Hello <tool_call>\n{wrong}\n</tool_call>")
        count, _ = fits(source, bad, kind)
        assert count < len(bad)
    free = tokens("Just text, and < or tool_call in it.")
    assert fits(source, free, kind) == (len(free), True)


def test_a_string_is_quoted_so_that_it_matches_itself() -> None:
    used = kit("byte_level")
    text = 'quote " back \\ slash / tab \t é \U0001f44d %json <x>'
    grammar = used.compiler.compile_lark(f"start: {lark_text(text)}", param="tools")
    tokens, ended = walk(used, grammar, 0)
    assert ended
    assert text_of(used, tokens) == text


def prepared(source: str) -> str:
    return prepare_lark(source, param="response_format", special={"<|x|>": 7}, plain=["<y>"], ends=[9], options={})


@pytest.mark.parametrize(
    ("largest", "larger"),
    [
        ('start: "a"' + " " * (MAX_GRAMMAR_CHARS - 10), 'start: "a"' + " " * (MAX_GRAMMAR_CHARS - 9)),
        ("r: x\n" * MAX_RULES, "r: x\n" * (MAX_RULES + 1)),
        (f'start: "a"{{{MAX_REPEAT}}}', f'start: "a"{{{MAX_REPEAT + 1}}}'),
        (f'start: "a"{{2,{MAX_REPEAT}}}', f'start: "a"{{2,{MAX_REPEAT + 1}}}'),
        (f'start: "a"~{MAX_REPEAT}', f'start: "a"~{MAX_REPEAT + 1}'),
        (f'start: "a"~1..{MAX_REPEAT}', f'start: "a"~1..{MAX_REPEAT + 1}'),
    ],
)
def test_a_grammar_may_be_as_large_as_a_limit_and_not_larger(largest: str, larger: str) -> None:
    assert prepared(largest) == largest
    with pytest.raises(RequestError) as caught:
        prepared(larger)
    assert caught.value.code == "schema_too_complex"


def test_a_caller_s_grammar_is_measured_before_it_is_converted() -> None:
    assert to_lark("x" * MAX_GRAMMAR_CHARS, param="response_format") == "x" * MAX_GRAMMAR_CHARS
    with pytest.raises(RequestError) as caught:
        to_lark("x" * (MAX_GRAMMAR_CHARS + 1), param="response_format")
    assert caught.value.code == "schema_too_complex"


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("start: <|x|>", "start: <[7]>"),
        ("start: <y>", 'start: "<y>"'),
        ("start: <[5]> <[*]> <[1-3,7]> <[^4]>", "start: <[5]> <[*]> <[1-3,7]> <[^4]>"),
        # What looks like a limit, an attribute or a name is text in strings, expressions and comments.
        ('start: "{99999}@stop=" /<z>{99999}/ // <z> @', 'start: "{99999}@stop=" /<z>{99999}/ // <z> @'),
        ("start: A # ~99999", "start: A # ~99999"),
        ('%llguidance {"no_forcing": true}\nstart: A', '%llguidance {"no_forcing": true}\nstart: A'),
        ("%llguidance {}\nstart: A", "%llguidance {}\nstart: A"),
        ("start: %regex {}", "start: %regex {}"),
    ],
)
def test_names_of_tokens_become_ids_or_text_and_all_else_stays(source: str, result: str) -> None:
    assert prepared(source) == result


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("start: <z>", "invalid_request"),
        ("start: %json {", "invalid_request"),
        ("start: @common.x", "invalid_request"),
        ('%llguidance {"other": 1}', "invalid_request"),
        ("%llguidance []", "invalid_request"),
        ("start[stop=x]: A", "unsupported_schema"),
        ("start[max_tokens=3]: A", "unsupported_schema"),
        ('start: %json {"contains": {}}', "unsupported_schema"),
    ],
)
def test_what_is_malformed_or_not_enforced_is_refused(source: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        prepared(source)
    assert caught.value.code == code


def test_the_end_of_the_output_is_not_named_by_a_grammar() -> None:
    with pytest.raises(RequestError, match="ends the output"):
        prepare_lark("start: <end>", param="x", special={"<end>": 9}, plain=[], ends=[9], options={})
