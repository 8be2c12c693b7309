"""Tokenizers of GGUF files against llama.cpp's own, in the interpreter that `scripts/bench --peers` makes."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from benchmarks.peers import LLAMA
from edgekit.export.checkpoints.gguf.checkpoint import GgufCheckpoint
from edgekit.export.checkpoints.gguf.tokenizer import PRE_TOKENIZERS
from tests.export.checkpoints.gguf.files import write_gguf
from tests.models import tiny_checkpoint, trained_bpe

TEXTS = [
    "Hello, world! It's 2026, and I'VE 12345 apples; they'll cost $3.50.\n\n\tdef f(x):\n    return x**2  # ok\r\n",
    "HTMLParser getName camelCaseWord XMLHttpRequest a//b///\n https://a.b/c?d=e_f  \n \n  x",
    "你好，世界！今天是2026年。こんにちは 안녕하세요",  # noqa: RUF001  Chinese has its own comma
    "Ünïcode Straße naïve façade Ελλάδα Привет мир",
    "👩‍👩‍👧‍👦 🇫🇷 ✨ مرحبا ไทย    x   ",
    "a'b 'tis DON'T we're   12 345 6789012 ½ ²",
]
# Read here: a test does not see this machine's variables.
_PYTHON = os.environ.get(LLAMA.variable, "")
_CHILD = """
import json, sys, llama_cpp
path, texts = json.load(sys.stdin)
model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
print(json.dumps([model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]))
"""


def greedy_tokenizer(folder: Path, vocab: int) -> None:
    """Train a BPE on whole lines: its tokens span words, digits and spaces, so that every split shows in the ids."""
    trained_bpe(TEXTS * 3, vocab, words=False).save(str(folder / "tokenizer.json"))


@pytest.mark.skipif(not _PYTHON, reason=f"{LLAMA.variable} names no interpreter with llama-cpp-python")
@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_text_becomes_llama_cpps_tokens(pre: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny", model_type="llama", vocab=1024)
    greedy_tokenizer(folder, 1024)
    path = write_gguf(folder, tmp_path / "tiny.gguf", pre=pre)
    request = json.dumps([str(path), TEXTS])
    done = subprocess.run([_PYTHON, "-c", _CHILD], input=request, capture_output=True, text=True, check=True)
    with closing(GgufCheckpoint(path)) as checkpoint:
        ours = Tokenizer.from_str(checkpoint.tokenizer().tokenizer_json.decode())
    for text, expected in zip(TEXTS, json.loads(done.stdout), strict=True):
        found = ours.encode(text, add_special_tokens=False)
        assert found.ids == expected, (text, found.tokens, [ours.id_to_token(number) for number in expected])
