"""Regular expressions, choices, and grammars that a caller wrote."""

from __future__ import annotations

import re

import pytest

from edgekit.errors import RequestError
from edgekit.generation.grammar import lark_json, lark_text
from edgekit.generation.request import ResponseFormat
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
    """How many of the tokens a grammar takes, and whether the answer may end after them."""
    matcher = kit(kind).compiler.compile_lark(source, param="tools").matcher()
    count = matcher.fits(tokens)
    for token in tokens[:count]:
        matcher.accept(token)
    return count, matcher.accepting


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "choices", [["yes", "no", "yes, but"], ["Größe", "法", "a\nb", 'say "x"', "\\n", " lead"], ["one"]]
)
def test_a_choice_is_one_of_its_texts(kind: str, choices: list[str]) -> None:
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
def test_what_is_no_list_of_texts_is_refused(choices: object) -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").compiler.compile(ResponseFormat("choice", choices))
    assert caught.value.code == "invalid_request"


def test_a_grammar_in_larks_syntax_is_held_to() -> None:
    used = kit("byte_level")
    source = 'start: expr\nexpr: expr "+" term | term\nterm: NUMBER | "(" expr ")"\nNUMBER: /[0-9]{1,3}/\n'
    grammar = used.compiler.compile(ResponseFormat("grammar", source))
    for seed in range(20):
        tokens, ended = walk(used, grammar, seed, most=200)
        if ended:
            text = text_of(used, tokens)
            assert re.fullmatch(r"[0-9+()]+", text)
            eval(re.sub(r"\b0+(?=\d)", "", text))  # noqa: S307


def test_a_grammar_of_llama_cpps_is_converted() -> None:
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
        ('start: "a" <|im_end|>', "invalid_request", "ends an answer"),
        ("start: a\na[max_tokens=5]: /x*/", "unsupported_schema", "`max_tokens`"),
        ('start: a\na[lazy, stop = "x"]: /y*/', "unsupported_schema", "`stop`"),
        ("start: @other", "invalid_request", "`@`"),
        ("start: %json {", "invalid_request", "not JSON"),
        ('start: %json {"type": "array", "uniqueItems": true}', "unsupported_schema", "%json 1: #/uniqueItems"),
        ('start: %json {} | /"/ %json {"not": 1}', "unsupported_schema", "%json 2: #/not"),
        ('%llguidance {"allow_invalid_utf8": true}\nstart: "a"', "invalid_request", "`%llguidance`"),
        ("", "invalid_request", "a text"),
        (5, "invalid_request", "a text"),
    ],
)
def test_a_grammar_that_is_not_held_to_is_refused(source: object, code: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        kit("byte_level").compiler.compile(ResponseFormat("grammar", source))
    assert caught.value.code == code
    assert says in caught.value.message
    assert caught.value.param == "response_format"


def test_what_looks_like_a_schema_or_a_token_in_texts_and_remarks_is_left_alone() -> None:
    used = kit("byte_level")
    source = r"""// %json {"uniqueItems": true} <|nope|>
start: "<|nope|> %json {" | B # <|nope|>
B: /<x\/"y>%json \{/
"""
    grammar = used.compiler.compile_lark(source, param="x")
    seen = {text_of(used, walk(used, grammar, seed)[0]) for seed in range(30)}
    assert seen == {"<|nope|> %json {", '<x/"y>%json {'}


@pytest.mark.parametrize("kind", KINDS)
def test_a_named_special_token_stands_where_it_is_named_and_nowhere_else(kind: str) -> None:
    used = kit(kind)
    tag, calls = used.id("<|python_tag|>"), used.id("[TOOL_CALLS]")
    source = 'start: TEXT (<|python_tag|> "a" | <[TOOL_CALLS]> "e")\nTEXT: /[a-z<>|_]*/'
    for seed in range(30):
        tokens, ended = walk(used, used.compiler.compile_lark(source, param="tools"), seed, most=400)
        if ended:
            assert tokens[-2:] in ([tag, used.id("a")], [calls, used.id("e")])
            assert not set(tokens[:-2]) & used.tokenizer.special_ids


@pytest.mark.parametrize("name", [PLAIN, f'"{PLAIN}"'])
def test_an_added_token_that_is_not_special_is_its_text(name: str) -> None:
    used = kit("byte_level")
    source = f"start: {name} %json {{}}"
    matcher = used.compiler.compile_lark(source, param="tools").matcher()
    assert matcher.forced() == [used.id(PLAIN)]
    # Spelled out it would be the same text, but where it is forced it is forced as the token.
    spelled = [used.id(char) for char in PLAIN]
    assert matcher.fits(spelled) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_calls_are_held_to_their_schemas_after_free_text(kind: str) -> None:
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

    # As in mid answer: a whole text's encoding puts SentencePiece's blank after an added token.
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


def test_a_text_is_quoted_so_that_it_means_itself() -> None:
    used = kit("byte_level")
    text = 'quote " back \\ slash / tab \t é \U0001f44d %json <x>'
    grammar = used.compiler.compile_lark(f"start: {lark_text(text)}", param="tools")
    tokens, ended = walk(used, grammar, 0)
    assert ended
    assert text_of(used, tokens) == text
