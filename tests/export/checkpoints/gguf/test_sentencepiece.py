"""SentencePiece vocabularies of GGUF files, against the SentencePiece library itself."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer

from edgekit.export.checkpoints.fixes import TextFixes
from edgekit.export.checkpoints.gguf.tokenizer import build_tokenizer

# Text to train on: this file's neighbours are enough.
CORPUS = sorted(Path(__file__).parent.glob("*.py"))
TEXTS = [
    "Hello, world! It's 2026, and I'VE 12345 apples.",
    "def test_a_file(tmp_path: Path) -> None:\n    assert tmp_path  # twice  two   spaces\n",
    "你好，世界！ مرحبا ไทย 👩‍👩‍👧 é",  # noqa: RUF001  Chinese has its own comma
    " leading and trailing ",
    "",
]


def trained(*, prefix: bool) -> sentencepiece.SentencePieceProcessor:
    """A BPE model with byte fallback, as Llama 2's is."""
    lines = [line for path in CORPUS for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=1500,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=prefix,
        user_defined_symbols=["<|end|>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def metadata(model: sentencepiece.SentencePieceProcessor, *, prefix: bool) -> dict[str, Any]:
    """The metadata that a GGUF converter writes for it."""
    count = model.get_piece_size()

    def kind(number: int) -> int:
        if model.is_unknown(number):
            return 2
        if model.is_control(number):
            return 3
        if model.is_byte(number):
            return 6
        return 4 if model.id_to_piece(number) == "<|end|>" else 1

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(number) for number in range(count)],
        "tokenizer.ggml.scores": np.array([model.get_score(number) for number in range(count)], np.float32),
        "tokenizer.ggml.token_type": np.array([kind(number) for number in range(count)], np.int32),
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.add_space_prefix": prefix,
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_it_encodes_and_decodes_as_sentencepiece_does(prefix: bool) -> None:
    model = trained(prefix=prefix)
    files = build_tokenizer(metadata(model, prefix=prefix), "tiny.gguf", model.get_piece_size(), TextFixes())
    tokenizer = Tokenizer.from_str(files.tokenizer_json.decode())
    rng = random.Random(0)  # noqa: S311  texts, not secrets
    alphabet = "abcdefgh   eeetttaaa_.()=:\n0123é你👩"
    texts = TEXTS + ["".join(rng.choices(alphabet, k=rng.randrange(1, 60))) for _ in range(300)]
    for text in texts:
        expected = model.encode(text)
        found = tokenizer.encode(text).ids
        assert found == [model.bos_id(), *expected], text
        assert tokenizer.decode(found) == model.decode(expected), text


def test_a_special_token_is_one_token_and_text_never_merges_into_a_control_token() -> None:
    model = trained(prefix=True)
    files = build_tokenizer(metadata(model, prefix=True), "tiny.gguf", model.get_piece_size(), TextFixes())
    tokenizer = Tokenizer.from_str(files.tokenizer_json.decode())
    assert model.piece_to_id("<|end|>") in tokenizer.encode("done<|end|>").ids
    assert files.eos_token_ids == (model.eos_id(),)
    assert files.special["bos_token"] == model.id_to_piece(model.bos_id())
