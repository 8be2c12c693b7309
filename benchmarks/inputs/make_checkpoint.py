"""Writes a checkpoint with the exact shapes of Qwen2.5-7B-Instruct, or of another model, and random weights.

    python benchmarks/inputs/make_checkpoint.py work/qwen7b                 15.2 GB, bfloat16, four shards
    python benchmarks/inputs/make_checkpoint.py work/small --shape 0.5b     1 GB, for trying out

Weights are drawn from a seed: normal, with a standard deviation per matrix as in trained models, rows and inputs of
different magnitude, and a few outlier inputs. They suit measurements of time, memory and weight error, not of output
quality. The tokenizer is a byte-level one.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SHAPES", "make_checkpoint", "tensor_shapes", "write_checkpoint"]

# From the config.json files of Qwen2.5-{0.5B,7B}-Instruct; `tiny` is for `--quick`.
SHAPES: dict[str, dict[str, int | bool]] = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "tie_word_embeddings": True,
    },
}
_COMMON = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SHARD_BYTES = 4_000_000_000
# Weights drawn at a time by one thread.
_PART = 1 << 22


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape of a `qwen2` model, in the order in which Hugging Face fills shards."""
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    vocab, heads = int(config["vocab_size"]), int(config["num_attention_heads"])
    narrow = hidden // heads * int(config["num_key_value_heads"])
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "mlp.down_proj.weight": (hidden, inner),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.k_proj.bias": (narrow,),
        "self_attn.k_proj.weight": (narrow, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "self_attn.q_proj.bias": (hidden,),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.v_proj.bias": (narrow,),
        "self_attn.v_proj.weight": (narrow, hidden),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(int(config["num_hidden_layers"])):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def make_checkpoint(folder: Path, shape: str = "7b", seed: int = 0) -> Path:
    """Write the checkpoint, unless it is complete, and return its folder.

    Args:
        folder: The output folder.
        shape: A key of `SHAPES`.
        seed: The same seed gives the same bytes.
    """
    return write_checkpoint(folder, SHAPES[shape], seed)


def write_checkpoint(folder: Path, config: Mapping[str, Any], seed: int = 0) -> Path:
    """Write a checkpoint, unless it is complete, and return its folder.

    Args:
        folder: The output folder.
        config: Keys of `config.json`; those that it lacks are Qwen2.5-7B-Instruct's.
        seed: The same seed gives the same bytes.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**_COMMON, **config}, indent=2) + "\n")
    _write_tokenizer(folder)
    shards = _shards(tensor_shapes(config))
    weight_map = {}
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / name, shapes, seed)
        weight_map |= dict.fromkeys(shapes, name)
    total = sum(2 * prod(shape) for shapes in shards for shape in shapes.values())
    # Written last: it marks the checkpoint as complete.
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
    return folder


def _shards(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        size += 2 * prod(shape)
        if size > _SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 2 * prod(shape)
        shards[-1][name] = shape
    # The safetensors library sorts tensors by name within a file: layer 10 before layer 2.
    return [dict(sorted(shard.items())) for shard in shards]


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            # A few parts at a time, to bound memory if the disk is slower than drawing.
            spans = list(_spans(shape))
            for first in range(0, len(spans), 8):
                parts = pool.map(lambda span: _draw(name, shape, span, seed), spans[first : first + 8])  # noqa: B023
                for part in parts:
                    file.write(part.data)


def _spans(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _PART // prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _draw(name: str, shape: tuple[int, ...], rows: slice, seed: int) -> npt.NDArray[np.uint16]:
    """Draw rows of a tensor as bfloat16 bits, `[rows, …]`."""
    per_tensor = np.random.default_rng((seed, zlib.crc32(name.encode())))
    count = rows.stop - rows.start
    if len(shape) == 1:
        values = per_tensor.normal(1.0 if "norm" in name else 0.0, 0.3, shape)[rows].astype(np.float32)
    else:
        # Matrices of trained models have standard deviations of 0.01 to 0.05; some inputs are several times larger.
        spread = per_tensor.uniform(0.012, 0.04)
        inputs = per_tensor.lognormal(0, 0.15, shape[1]) * np.where(per_tensor.random(shape[1]) < 0.002, 4, 1)
        outputs = per_tensor.lognormal(0, 0.2, shape[0])[rows, None]
        draw = np.random.Generator(np.random.SFC64((seed, zlib.crc32(name.encode()), rows.start)))
        values = draw.standard_normal((count, shape[1]), dtype=np.float32)
        values *= (inputs * spread).astype(np.float32)
        values *= outputs.astype(np.float32)
    bits = values.view(np.uint32)
    # Round to the nearest bfloat16: add half of the discarded range.
    bits += np.uint32(0x8000)
    return np.ascontiguousarray((bits >> np.uint32(16)).astype("<u2"))


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # The bytes in the order of byte-level BPE, without merges.
    vocab = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 256]}) + "\n")


def main() -> None:
    """Write a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="7b")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(make_checkpoint(arguments.folder, arguments.shape, arguments.seed))


if __name__ == "__main__":
    main()
