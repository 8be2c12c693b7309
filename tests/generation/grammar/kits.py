"""Tokenizers of both kinds, trained on a little text, and a random walk under a grammar's mask."""

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

from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.grammar import Grammar, GrammarCompiler, Matcher
from edgekit.generation.types import ResponseFormat

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
# The model's logits are wider than the tokenizer's vocabulary, and their width is not a multiple of 32.
PADDING = 37


@dataclass(frozen=True)
class Kit:
    """A tokenizer and a compiler for it."""

    tokenizer: Tokenizer
    compiler: GrammarCompiler
    eos: frozenset[int]
    vocab_size: int

    def schema(self, schema: object) -> Grammar:
        """Compile a JSON schema."""
        return self.compiler.compile(ResponseFormat("json_schema", schema))

    def id(self, token: str) -> int:
        """The id of a token."""
        token_id = self.tokenizer.backend.token_to_id(token)
        assert token_id is not None
        return token_id


@cache
def kit(kind: str) -> Kit:
    """Return the kit of a kind; one per test run, read-only."""
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
    """Like Llama 2's: a space is prepended, spaces are replaced by ▁, unknown characters fall back to bytes."""
    trained = Backend(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {piece: token_id for token_id, piece in enumerate(["<unk>", *bytes_, *model["vocab"]])}
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
    used: Kit, grammar: Grammar, seed: int, *, max_tokens: int = 4000, hurry: float = 0.5, forced: bool = True
) -> tuple[list[int], bool]:
    """Generate random tokens under the mask.

    Args:
        hurry: Probability of preferring a token that closes something.
        forced: Accept forced tokens after checking them against the mask.

    Returns:
        The tokens without the end token, and whether the output ended.
    """
    rng = random.Random(seed)  # noqa: S311
    closing = {used.tokenizer.backend.token_to_id(char) for char in '"}]'} | used.eos
    matcher = grammar.matcher()
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        for token in matcher.forced() if forced else []:
            assert list(allowed(matcher)) == [token], "a forced token is the only one"
            matcher.accept(token)
            tokens.append(token)
        choices = allowed(matcher)
        closers = [token for token in choices if int(token) in closing]
        token = int(rng.choice(closers if closers and rng.random() < hurry else choices))
        matcher.accept(token)
        if token in used.eos:
            return tokens, True
        tokens.append(token)
    return tokens, False


def text_of(used: Kit, tokens: Sequence[int]) -> str:
    """Decode tokens within an output."""
    # A preceding token, as in a prompt, keeps SentencePiece's decoder from dropping a leading space.
    lead = used.tokenizer.encode("a", obey_special=False)
    return used.tokenizer.decode([*lead, *tokens]).removeprefix(used.tokenizer.decode(lead))
