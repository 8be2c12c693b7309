"""Tokens and their bytes, for both kinds of tokenizer."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from edgekit.errors import EdgekitError
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.grammar import GrammarCompiler
from edgekit.generation.grammar.vocabulary import Vocabulary, token_bytes
from edgekit.generation.types import ResponseFormat
from tests.generation.grammar.kits import KINDS, PLAIN, SPECIAL, allowed, kit, text_of


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokens_bytes_are_what_it_decodes_to(kind: str) -> None:
    used = kit(kind)
    tokens = token_bytes(used.tokenizer)
    rng = random.Random(1)  # noqa: S311
    plain = [number for number in range(used.tokenizer.vocab_size) if number not in used.tokenizer.special_ids]
    for _ in range(300):
        chosen = rng.choices(plain, k=6)
        data = b"".join(tokens[number] for number in chosen)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            # The number of replacement characters for invalid bytes is up to the library.
            continue
        assert text_of(used, chosen) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ['{"name": "Ada"}', " Paris", "e\u0301 stays as it is", "👍🏽 法", "a <|im_end|> b", "\n\n"]
)
def test_text_within_an_output_is_encoded_as_it_is(kind: str, text: str) -> None:
    used = kit(kind)
    trie = Vocabulary(used.tokenizer, vocab_size=used.vocab_size, eos_token_ids=used.eos).trie
    tokens = trie.tokenize_str(text)
    assert not set(tokens) & used.tokenizer.special_ids
    assert trie.decode_bytes(tokens) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_within_an_output_gives_the_tokens_of_the_bundles_tokenizer(kind: str) -> None:
    used = kit(kind)
    trie = Vocabulary(used.tokenizer, vocab_size=used.vocab_size, eos_token_ids=used.eos).trie
    text = f'The answer is "Paris", it is true: {PLAIN}'
    expected = used.tokenizer.encode(text, obey_special=False)
    given = trie.tokenize_str(" " + text if kind == "sentencepiece" else text)
    assert given == expected
    assert used.id(PLAIN) in given


@pytest.mark.parametrize("kind", KINDS)
def test_free_text_allows_every_plain_token_and_no_special_one(kind: str) -> None:
    used = kit(kind)
    grammar = used.compiler.compile_lark("start: TEXT\nTEXT: /(?s:.)*/", param="response_format")
    ids = set(allowed(grammar.matcher()).tolist())
    # The text may end anywhere, so end tokens are allowed; other special tokens and the padding of the logits are not.
    assert ids & used.tokenizer.special_ids == used.eos
    assert max(ids) < used.tokenizer.vocab_size
    assert used.id(PLAIN) in ids


def test_a_byte_that_has_a_token_of_its_own_is_not_spelled_as_a_byte() -> None:
    used = kit("sentencepiece")
    grammar = used.compiler.compile(ResponseFormat("regex", "a"))
    assert allowed(grammar.matcher()).tolist() == [used.id("a")]
    rare = used.compiler.compile(ResponseFormat("regex", "\u2603"))
    assert allowed(rare.matcher()).tolist() == [used.id("<0xE2>")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_grammar_that_allows_every_id_allows_no_padding(kind: str) -> None:
    used = kit(kind)
    grammar = used.compiler.compile_lark('start: <[*]> "a"', param="response_format")
    ids = set(allowed(grammar.matcher()).tolist())
    assert ids == set(range(used.tokenizer.vocab_size)) - used.eos
    assert {used.id(name) for name in SPECIAL[2:]} <= ids


def test_a_tokenizer_without_known_bytes_is_refused() -> None:
    backend = Backend(models.WordLevel(vocab={"a": 0, "</s>": 1}, unk_token="a"))  # noqa: S106
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["</s>"])
    compiler = GrammarCompiler(Tokenizer(backend), vocab_size=2, eos_token_ids=[1])
    with pytest.raises(EdgekitError) as caught:
        compiler.compile(ResponseFormat("json_object"))
    assert caught.value.code == "grammar_unavailable"


def test_a_model_narrower_than_its_tokenizer_is_refused() -> None:
    used = kit("byte_level")
    compiler = GrammarCompiler(used.tokenizer, vocab_size=10, eos_token_ids=[1])
    with pytest.raises(EdgekitError, match="the model has 10 tokens and its tokenizer"):
        compiler.compile(ResponseFormat("json_object"))
