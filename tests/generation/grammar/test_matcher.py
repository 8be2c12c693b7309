"""Masks, forced tokens and drafts agree with each other, and an error ends the output."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.grammar import Grammar, Matcher
from edgekit.generation.grammar import compiler as compiler_module
from edgekit.generation.types import ResponseFormat
from tests.generation.grammar.kits import KINDS, Kit, allowed, bits, kit, text_of, walk
from tests.generation.grammar.schemas import schemas

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
}


def one_by_one(matcher: Matcher, tokens: list[int], used: Kit) -> int:
    """Length of the allowed prefix, with each token checked against the mask at its position."""
    for count, token in enumerate(tokens):
        if token in used.eos or token not in allowed(matcher):
            return count
        matcher.accept(token)
    return len(tokens)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=schemas(), seed=st.integers(0, 2**32))
def test_a_draft_fits_as_far_as_masks_allow_it(kind: str, schema: Any, seed: int) -> None:
    used = kit(kind)
    try:
        grammar = used.schema(schema)
    except RequestError:
        return
    tokens, _ = walk(used, grammar, seed, max_tokens=60)
    rng = random.Random(seed)  # noqa: S311
    for _ in range(4):
        draft = tokens.copy()
        for _ in range(rng.randrange(2)):
            draft.insert(rng.randrange(len(draft) + 1), rng.randrange(used.vocab_size))
        start = rng.randrange(len(tokens) + 1)
        matcher, other = grammar.matcher(), grammar.matcher()
        for token in tokens[:start]:
            matcher.accept(token)
            other.accept(token)
        before = matcher.mask()
        count = matcher.fits(draft[start:])
        assert count == one_by_one(other, draft[start:], used)
        assert before is not None
        # `fits` does not change the state, not even of a mask computed later.
        fresh = grammar.matcher()
        for token in tokens[:start]:
            fresh.accept(token)
        fresh.fits(draft[start:])
        after = fresh.mask()
        assert after is not None
        assert np.array_equal(before, after)


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_token_is_allowed_exactly_where_the_answer_may_end(kind: str) -> None:
    used = kit(kind)
    grammar = used.compiler.compile(ResponseFormat("regex", "ab?"))
    matcher = grammar.matcher()
    assert (matcher.accepting, matcher.complete) == (False, False)
    assert not set(allowed(matcher).tolist()) & used.eos
    with pytest.raises(EdgekitError) as caught:
        matcher.accept(min(used.eos))
    assert caught.value.code == "grammar_failed"
    matcher = grammar.matcher()
    matcher.accept(used.id("a"))
    assert (matcher.accepting, matcher.complete) == (True, False)
    assert set(allowed(matcher).tolist()) == used.eos | {used.id("b")}
    matcher.accept(used.id("b"))
    assert (matcher.accepting, matcher.complete) == (True, True)
    assert set(allowed(matcher).tolist()) == used.eos
    assert matcher.forced() == []
    assert matcher.fits([used.id("a")]) == 0
    matcher.accept(max(used.eos))
    assert matcher.complete


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_has_a_bit_for_each_of_the_models_tokens(kind: str) -> None:
    used = kit(kind)
    mask = used.schema(PERSON).matcher().mask()
    assert mask is not None
    assert mask.dtype == np.int32
    assert mask.shape == (-(-used.vocab_size // 32),)
    assert not bits(mask)[used.tokenizer.vocab_size :].any()


@pytest.mark.parametrize("size", [32, 33, 64])
def test_the_masks_width_is_right_at_every_vocabulary_size(size: int) -> None:
    used = kit("byte_level")
    width = -(-used.tokenizer.vocab_size // 32) * 32 + size
    grammar = compiler_module.GrammarCompiler(used.tokenizer, vocab_size=width, eos_token_ids=used.eos).compile(
        ResponseFormat("json_object")
    )
    mask = grammar.matcher().mask()
    assert mask is not None
    assert mask.shape == (-(-width // 32),)


@pytest.mark.parametrize("kind", KINDS)
def test_forced_tokens_are_those_that_the_tokenizer_writes(kind: str) -> None:
    used = kit(kind)
    sentence = "The capital of France is Paris, and"
    matcher = used.compiler.compile(ResponseFormat("choice", [sentence])).matcher()
    forced = matcher.forced()
    assert len(forced) > 3
    lead = used.tokenizer.encode("a", obey_special=False)
    whole = used.tokenizer.encode("a" + sentence, obey_special=False)
    if whole[: len(lead)] == lead and kind == "byte_level":
        assert forced == used.tokenizer.encode(sentence, obey_special=False)[: len(forced)]
    assert sentence.startswith(text_of(used, forced))
    assert matcher.fits(forced) == len(forced)


@pytest.mark.parametrize("kind", KINDS)
def test_a_special_tokens_name_in_a_text_is_never_forced_as_the_token(kind: str) -> None:
    used = kit(kind)
    text = "a<|im_end|>b<|python_tag|>"
    grammar = used.compiler.compile(ResponseFormat("choice", [text]))
    tokens, ended = walk(used, grammar, 1)
    assert ended
    assert not set(tokens) & used.tokenizer.special_ids
    assert text_of(used, tokens) == text


def test_a_token_that_does_not_fit_fails_the_answer_for_good() -> None:
    used = kit("byte_level")
    matcher = used.schema(PERSON).matcher()
    with pytest.raises(EdgekitError) as caught:
        matcher.accept(used.id("x"))
    assert caught.value.code == "grammar_failed"
    for ask in (matcher.mask, matcher.forced, lambda: matcher.fits([1]), lambda: matcher.accepting):
        with pytest.raises(EdgekitError):
            ask()


def test_a_grammar_that_becomes_too_complex_fails_the_answer() -> None:
    used = kit("byte_level")
    nested = '(((("a"|"b"){1,1000}){1,1000}){1,1000}){1,1000}'
    matcher = used.compiler.compile_lark(f"start: {nested}", param="response_format").matcher()

    def answer() -> None:
        for _ in range(200):
            matcher.mask()
            matcher.accept(used.id("a"))

    with pytest.raises(EdgekitError) as caught:
        answer()
    assert caught.value.code == "grammar_failed"


def test_matchers_of_one_grammar_are_independent() -> None:
    used = kit("byte_level")
    grammar = used.schema(PERSON)
    first = grammar.matcher()
    start = first.mask()
    assert start is not None
    first.accept(used.id("{"))
    second = grammar.matcher().mask()
    assert second is not None
    assert np.array_equal(start, second)


def test_a_compiled_schema_is_cached_whatever_its_annotations() -> None:
    used = kit("byte_level")
    grammar = used.schema(PERSON)
    assert used.schema({"title": "Person", "$comment": "again", **PERSON}) is grammar
    assert used.schema(PERSON | {"required": ["name"]}) is not grammar


def test_the_cache_is_bounded() -> None:
    used = kit("byte_level")
    for number in range(compiler_module.MAX_CACHED + 10):
        used.schema({"const": number})
    assert len(used.compiler._cache) == compiler_module.MAX_CACHED


def test_large_grammars_leave_the_cache_before_they_are_many() -> None:
    used = kit("byte_level")
    fresh = compiler_module.GrammarCompiler(used.tokenizer, vocab_size=used.vocab_size, eos_token_ids=used.eos)

    def large(number: int, properties: int) -> Grammar:
        names = {f"{number}-{at}-{'x' * 90}": {"type": "null"} for at in range(properties)}
        return fresh.compile(ResponseFormat("json_schema", {"type": "object", "properties": names}))

    grammars = [large(number, 1000) for number in range(6)]
    sizes = [len(source) for _, source in fresh._cache]
    assert 1 < len(sizes) < 6
    assert sum(sizes) <= compiler_module.MAX_CACHED_CHARS < sum(sizes) + max(sizes)
    assert large(5, 1000) is grammars[5]
    assert large(0, 1000) is not grammars[0]


def test_several_threads_compile_and_walk_at_once() -> None:
    used = kit("byte_level")
    texts: list[str] = []

    def work(seed: int) -> None:
        for number in range(5):
            grammar: Grammar = used.schema(PERSON | {"maxProperties": 2 + number})
            tokens, ended = walk(used, grammar, seed)
            assert ended
            texts.append(text_of(used, tokens))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 30


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_follows_an_end_token_even_where_the_answer_could_have_gone_on(kind: str) -> None:
    used = kit(kind)
    matcher = used.compiler.compile(ResponseFormat("regex", "ab?")).matcher()
    matcher.accept(used.id("a"))
    assert matcher.fits([used.id("b")]) == 1
    matcher.accept(min(used.eos))
    assert (matcher.accepting, matcher.complete) == (True, True)
    assert set(allowed(matcher).tolist()) == used.eos
    assert matcher.forced() == []
    assert matcher.fits([used.id("b")]) == 0
    with pytest.raises(EdgekitError, match=r"token \d+ is not allowed"):
        matcher.accept(used.id("b"))
