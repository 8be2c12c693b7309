"""Tokenizers of both kinds, trained on a little text, and a walker that answers at random under a grammar's mask."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from edgekit.generation.grammar import Grammar, GrammarCompiler, Matcher
from edgekit.generation.request import ResponseFormat
from edgekit.generation.tokenizer import Tokenizer

__all__ = ["KINDS", "Kit", "allowed", "bits", "kit", "walk"]

KINDS = ("byte_level", "sentencepiece")
SPECIAL = ("<|endoftext|>", "<|im_end|>", "<|python_tag|>", "[TOOL_CALLS]")
PLAIN = "<tool_call>"
CORPUS = (
    '{"name": "Ada", "age": 36, "tags": ["a", "b"], "address": {"city": "Paris", "zip": "75001"}, "ok": true}',
    '{\n  "name": "Grace",\n  "age": 85,\n  "score": -1.5e3,\n  "none": null,\n  "ok": false\n}',
    "The capital of France is Paris, and the answer is 2024-02-29T12:00:00Z or 192.168.0.1.",
    "Größe: 法国的首都是巴黎。 👍🏽 name value kind key item true false null",
)
# The model's logits are wider than the tokenizer, and no multiple of 32.
PADDING = 37


@dataclass(frozen=True)
class Kit:
    """A tokenizer and a compiler over it."""

    tokenizer: Tokenizer
    compiler: GrammarCompiler
    eos: frozenset[int]
    vocab_size: int

    def schema(self, schema: object) -> Grammar:
        """Compile a JSON schema."""
        return self.compiler.compile(ResponseFormat("json_schema", schema))

    def id(self, token: str) -> int:
        """The number of a token."""
        number = self.tokenizer.backend.token_to_id(token)
        assert number is not None
        return number


@cache
def kit(kind: str) -> Kit:
    """One of each kind for the whole run; they are read only."""
    backend = _byte_level() if kind == "byte_level" else _sentencepiece()
    backend.add_special_tokens(list(SPECIAL))
    backend.add_tokens([AddedToken(PLAIN, special=False, normalized=False)])
    tokenizer = Tokenizer(backend)
    eos = frozenset(tokenizer.encode("<|endoftext|><|im_end|>"))
    assert len(eos) == 2
    vocab_size = tokenizer.vocab_size + PADDING
    return Kit(tokenizer, GrammarCompiler(tokenizer, vocab_size=vocab_size, eos_token_ids=eos), eos, vocab_size)


def _byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def _sentencepiece() -> Backend:
    """Like Llama 2's: a blank is put before a text, blanks are written ▁, unknown characters are bytes."""
    trained = Backend(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {piece: number for number, piece in enumerate(["<unk>", *bytes_, *model["vocab"]])}
    merges = [tuple(merge) for merge in model["merges"]]
    backend = Backend(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))  # noqa: S106
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>"])
    return backend


def bits(mask: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """A packed mask as one boolean per token."""
    return np.unpackbits(mask.view(np.uint8), bitorder="little").astype(np.bool_)


def allowed(matcher: Matcher) -> npt.NDArray[np.intp]:
    """The tokens that may come next."""
    mask = matcher.mask()
    assert mask is not None
    return np.nonzero(bits(mask))[0]


def walk(
    used: Kit, grammar: Grammar, seed: int, *, most: int = 4000, hurry: float = 0.5, forced: bool = True
) -> tuple[list[int], bool]:
    """Answer at random under the mask.

    Args:
        hurry: How often a token is chosen that closes something, where one may come.
        forced: Take forced tokens as they are, once the mask agrees.

    Returns:
        The tokens, without the last, and whether the answer ended.
    """
    chance = random.Random(seed)  # noqa: S311
    closing = {used.tokenizer.backend.token_to_id(char) for char in '"}]'} | used.eos
    matcher = grammar.matcher()
    tokens: list[int] = []
    while len(tokens) < most:
        ahead = matcher.forced() if forced else []
        for token in ahead:
            assert list(allowed(matcher)) == [token], "a forced token is the only one"
            matcher.accept(token)
            tokens.append(token)
        choices = allowed(matcher)
        closers = [token for token in choices if int(token) in closing]
        token = int(chance.choice(closers if closers and chance.random() < hurry else choices))
        matcher.accept(token)
        if token in used.eos:
            return tokens, True
        tokens.append(token)
    return tokens, False


def text_of(used: Kit, tokens: Sequence[int]) -> str:
    """What tokens in mid answer say."""
    # A token before them, as the prompt is, keeps SentencePiece's decoder from dropping a first blank.
    lead = used.tokenizer.encode("a", obey_special=False)
    return used.tokenizer.decode([*lead, *tokens]).removeprefix(used.tokenizer.decode(lead))
