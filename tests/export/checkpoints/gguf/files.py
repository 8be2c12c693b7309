"""Writes tiny GGUF files with the reference library, from a tiny Hugging Face checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import quantize

from tests.models import CHATML, tiny_tensors

_ARCHITECTURES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}


def permuted(values: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Order the rows of a llama's q or k as GGUF converters do."""
    halves: npt.NDArray[Any] = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    pairs: npt.NDArray[Any] = halves.swapaxes(1, 2).reshape(values.shape)
    return pairs


def write_gguf(
    folder: Path,
    path: Path,
    *,
    encoding: str = "F32",
    metadata: dict[str, Any] | None = None,
    pre: str | None = "gpt-2",
    extra_tensors: dict[str, npt.NDArray[np.float32]] | None = None,
    quantized_vectors: dict[str, npt.NDArray[np.float32]] | None = None,
    raw_tensors: dict[str, npt.NDArray[np.uint8]] | None = None,
    parts: int = 1,
) -> Path:
    """Write a tiny checkpoint folder as one GGUF file.

    Args:
        folder: Made by `tests.models.tiny_checkpoint`.
        path: Where to write.
        encoding: For the matrices; vectors stay F32.
        metadata: Additional keys, or other values; None leaves one out.
        pre: `tokenizer.ggml.pre`.
        extra_tensors: By GGUF name.
        quantized_vectors: By GGUF name, written in `encoding`.
        raw_tensors: Bytes of blocks, by encoding: each becomes the tensor `blk.0.<encoding>`.
        parts: Files to split it into; then `path` only names them.
    """
    config = json.loads((folder / "config.json").read_text())
    arch = config["model_type"].removesuffix("_text")
    tensors = tiny_tensors(folder)
    # The names that the reference library gives them, independent of the reader.
    names = gguf.get_tensor_name_map(_ARCHITECTURES[arch], config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=-(-len(tensors) // parts) if parts > 1 else 0)
    pairs: dict[str, Any] = {
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": config["num_attention_heads"],
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.rope.freq_base": config["rope_theta"],
        **_own_keys(arch, config),
        "general.license": "apache-2.0",
        **tokenizer_metadata(folder, pre),
        **(metadata or {}),
    }
    for key, value in pairs.items():
        _add(writer, key, value)
    kind = gguf.GGMLQuantizationType[encoding]
    for name, values in tensors.items():
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if arch == "llama" and heads is not None:
            values = permuted(values, config[heads])  # noqa: PLW2901  the same tensor in another order
        if arch == "gemma3" and name.endswith("norm.weight"):
            values = values + np.float32(1)  # noqa: PLW2901  as the converter stores it
        module, suffix = name.rsplit(".", 1)
        gguf_name = f"{names[module]}.{suffix}"
        if values.ndim == 2 and encoding != "F32":
            writer.add_tensor(gguf_name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name, np.ascontiguousarray(values))
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    for name, values in (quantized_vectors or {}).items():
        writer.add_tensor(name, quantize(values[None], kind)[0], raw_dtype=kind)
    for name, blocks in (raw_tensors or {}).items():
        writer.add_tensor(f"blk.0.{name}", blocks, raw_dtype=gguf.GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _own_keys(arch: str, config: dict[str, Any]) -> dict[str, Any]:
    """Keys that a converter writes for some architectures only."""
    keys: dict[str, Any] = {}
    if "head_dim" in config:
        keys |= {f"{arch}.attention.{kind}_length": config["head_dim"] for kind in ("key", "value")}
    if arch in {"phi3", "gemma3"} and config.get("sliding_window"):
        keys[f"{arch}.attention.sliding_window"] = config["sliding_window"]
    if arch == "gemma3" and "rope_scaling" in config:
        keys |= {f"{arch}.rope.scaling.type": "linear", f"{arch}.rope.scaling.factor": config["rope_scaling"]["factor"]}
    if arch == "phi3":
        width = config["hidden_size"] // config["num_attention_heads"]
        keys[f"{arch}.rope.dimension_count"] = int(width * config.get("partial_rotary_factor", 1.0))
        if "original_max_position_embeddings" in config:
            keys[f"{arch}.rope.scaling.original_context_length"] = config["original_max_position_embeddings"]
    return keys


def rope_tables(config: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    """LongRoPE's factors as tensors."""
    scaling = config.get("rope_scaling") or {}
    return {
        f"rope_factors_{kind}.weight": np.array(scaling[f"{kind}_factor"], np.float32)
        for kind in ("short", "long")
        if f"{kind}_factor" in scaling
    }


def tokenizer_metadata(folder: Path, pre: str | None) -> dict[str, Any]:
    """The metadata that a converter writes for a tiny checkpoint's tokenizer."""
    document = json.loads((folder / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {entry["content"] for entry in document["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in document["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
