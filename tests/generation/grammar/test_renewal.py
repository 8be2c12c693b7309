"""An answer has the automaton that it needs, whatever other answers and draft tokens used up."""

from __future__ import annotations

import random
from typing import Any

import pytest

from edgekit.errors import EdgekitError
from edgekit.generation.grammar import Grammar, compiler
from edgekit.generation.grammar.compiler import GrammarCompiler
from edgekit.generation.grammar.matcher import MAX_RENEWALS
from edgekit.generation.types import ResponseFormat
from tests.generation.grammar.kits import Kit, allowed, kit

# Its automaton has a state for each number of characters and words.
SUMMARY: dict[str, Any] = {
    "type": "object",
    "properties": {"summary": {"type": "string", "maxLength": 600, "pattern": r"^(?:\S+\s+){0,99}\S+$"}},
}
# The states that its longest answers need, with room for a few thousand more.
STATES = 20_000


def compiled(used: Kit) -> Grammar:
    """A grammar that no other test uses."""
    fresh = GrammarCompiler(used.tokenizer, vocab_size=used.vocab_size, eos_token_ids=used.eos)
    return fresh.compile(ResponseFormat("json_schema", SUMMARY))


def summary(seed: int, used: Kit, length: int = 590) -> list[int]:
    """A valid answer of random words."""
    rng = random.Random(seed)  # noqa: S311
    words: list[str] = []
    while sum(map(len, words)) + len(words) < length - 12:
        words.append("".join(rng.choice("abcdefghijéß法") for _ in range(rng.randrange(6, 12))))
    return used.tokenizer.encode(f'{{"summary": "{" ".join(words)}"}}', obey_special=False)


def follow(grammar: Grammar, tokens: list[int], drafts: int = 0, noise: random.Random | None = None) -> int:
    """Advance as decoding does, with masks and draft tokens; return the draft tokens that did not fit though right."""
    matcher = grammar.matcher()
    missed = 0
    for at, token in enumerate(tokens):
        if drafts:
            right = tokens[at : at + drafts]
            fitting = matcher.fits(right)
            missed += len(right) - fitting
            if noise is not None:
                matcher.fits([*right[: noise.randrange(drafts)], *noise.sample(range(300), drafts)])
        assert token in allowed(matcher)
        matcher.accept(token)
    assert matcher.accepting
    return missed


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A maximum of states that a few answers reach together."""
    monkeypatch.setattr(compiler, "MAX_STATES", STATES)


@pytest.mark.usefixtures("_small")
def test_no_answer_fails_because_of_others() -> None:
    used = kit("byte_level")
    grammar = compiled(used)
    for seed in range(6):
        follow(grammar, summary(seed, used))


@pytest.mark.usefixtures("_small")
def test_answers_at_the_same_time_do_not_fail_each_other() -> None:
    used = kit("byte_level")
    grammar = compiled(used)
    answers = [summary(seed, used) for seed in range(5)]
    matchers = [grammar.matcher() for _ in answers]
    for at in range(max(map(len, answers))):
        for matcher, tokens in zip(matchers, answers, strict=True):
            if at < len(tokens):
                assert tokens[at] in allowed(matcher)
                matcher.accept(tokens[at])
    assert all(matcher.accepting for matcher in matchers)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("drafts", [1, 3, 11])
def test_an_answer_that_succeeds_without_drafts_succeeds_with_them(drafts: int) -> None:
    used = kit("byte_level")
    grammar = compiled(used)
    for seed in range(3):
        follow(grammar, summary(seed, used), drafts, random.Random(seed))  # noqa: S311


@pytest.mark.parametrize("drafts", [4, 11, 40])
def test_every_draft_token_of_a_fitting_answer_fits(drafts: int) -> None:
    used = kit("byte_level")
    assert follow(compiled(used), summary(1, used), drafts) == 0


def test_an_answer_that_is_too_complex_by_itself_fails_and_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = kit("byte_level")
    monkeypatch.setattr(compiler, "MAX_STATES", 1500)
    grammar = compiled(used)
    for _ in range(2):
        with pytest.raises(EdgekitError) as caught:
            follow(grammar, summary(1, used))
        assert caught.value.code == "grammar_failed"
        follow(grammar, used.tokenizer.encode('{"summary": "a b"}', obey_special=False))


def test_an_answer_fills_a_bounded_number_of_automata(monkeypatch: pytest.MonkeyPatch) -> None:
    used = kit("byte_level")
    monkeypatch.setattr(compiler, "MAX_STATES", 1500)
    grammar = compiled(used)
    built = 0
    real = grammar._build

    def counted(*arguments: Any) -> Any:
        nonlocal built
        built += 1
        return real(*arguments)

    monkeypatch.setattr(grammar, "_build", counted)
    with pytest.raises(EdgekitError):
        follow(grammar, summary(1, used))
    assert built == MAX_RENEWALS


def test_only_the_automata_that_were_used_last_stay_large() -> None:
    """A client whose every request has a schema of its own would fill the memory with them."""
    used = kit("byte_level")
    fresh = GrammarCompiler(used.tokenizer, vocab_size=used.vocab_size, eos_token_ids=used.eos)
    grammars = []
    for number in range(compiler.MAX_LARGE + 3):
        pattern = rf"^(?:\S+\s+){{0,{99 - number}}}\S+$"
        schema = {"type": "object", "properties": {"summary": {"type": "string", "maxLength": 600, "pattern": pattern}}}
        grammars.append(fresh.compile(ResponseFormat("json_schema", schema)))
    answer = summary(1, used)
    for grammar in grammars:
        follow(grammar, answer, 3)
    assert all(grammar._large for grammar in grammars), "these answers fit in a small automaton: nothing is tested"
    assert [grammar for grammar in grammars if grammar._prototype is not None] == grammars[-compiler.MAX_LARGE :]
    # The first ones are compiled again, with the room that they need.
    assert follow(grammars[0], answer, 11) == 0
    assert [grammar for grammar in grammars if grammar._prototype is not None] == [grammars[0], grammars[-1]]


def test_a_schema_of_ordinary_answers_keeps_its_small_automaton() -> None:
    used = kit("byte_level")
    fresh = GrammarCompiler(used.tokenizer, vocab_size=used.vocab_size, eos_token_ids=used.eos)
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 100},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
    }
    grammar = fresh.compile(ResponseFormat("json_schema", schema))
    prototype = grammar._prototype
    for number in range(20):
        text = f'{{"name": "Ada {number}", "tags": ["{"a" * number}", "b"]}}'
        follow(grammar, used.tokenizer.encode(text, obey_special=False), 3)
    assert not grammar._large
    assert grammar._prototype is prototype


def test_masks_and_forced_tokens_are_the_same_with_a_new_automaton() -> None:
    used = kit("byte_level")
    grammar = compiled(used)
    tokens = summary(2, used, 120)
    matcher, other = grammar.matcher(), grammar.matcher()
    for at, token in enumerate(tokens):
        if at % 7 == 3:
            other._recover()
            other._renewals = 0
            other._mask = None
        assert matcher.forced() == other.forced()
        assert list(allowed(matcher)) == list(allowed(other))
        matcher.accept(token)
        other.accept(token)
