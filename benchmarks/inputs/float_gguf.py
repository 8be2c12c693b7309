"""Converts a Hugging Face folder of float weights to GGUF, without a tokenizer, for llama.cpp's quantizer.

Uses ggml's `gguf` library, which also maps the tensor names. Llama's q and k rows are permuted as in its converters.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np

from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from edgekit.export.quantization.grid import as_floats


def write_float_gguf(folder: Path, path: Path) -> None:
    """Write a `llama` or `qwen2` checkpoint as float16 GGUF."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    arch, heads = config["model_type"], config["num_attention_heads"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[arch], config["num_hidden_layers"])
    with closing(FolderCheckpoint(folder)) as checkpoint:
        for name in checkpoint.tensors:
            values = as_floats(checkpoint.read(name))
            shared = {"q_proj": heads, "k_proj": config["num_key_value_heads"]}.get(name.split(".")[-2])
            if arch == "llama" and shared is not None:
                halves = values.reshape(shared, 2, len(values) // shared // 2, *values.shape[1:])
                values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
            module, kind = name.rsplit(".", 1)
            writer.add_tensor(f"{names[module]}.{kind}", values.astype(np.float16 if values.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
