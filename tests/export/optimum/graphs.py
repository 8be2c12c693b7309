"""Graphs written by Optimum itself, once per run: a process with torch takes seconds to start."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from edgekit.export.optimum.exporter import FloatGraph, export_graph
from tests.models import tiny_checkpoint
from tests.oracle import oracle_python, transformers_checkpoint

__all__ = ["MODELS", "checkpoint", "float_graph"]

# By name: features that edgekit's own writers do not support, and the arguments of the model's configuration.
MODELS: dict[str, dict[str, Any]] = {
    # Weights `[in, out]` in `Gemm`, a learned position table, LayerNorm, a tied head.
    "gpt2": {"n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 512, "n_positions": 96},
    # Weights `[out, in]` in `Gemm`; the second of them has inputs that no group size divides.
    "opt": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 512,
        "ffn_dim": 200,
        "max_position_embeddings": 96,
        "word_embed_proj_dim": 128,
    },
    # Windows shorter than the sequence in every other layer, softcapping, constants stored among the weights.
    "gemma2": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 512,
        "intermediate_size": 192,
        "max_position_embeddings": 96,
        "sliding_window": 8,
        # Far below the published 50, so that a graph without it differs.
        "attn_logit_softcapping": 2.0,
        "pad_token_id": 0,
    },
}


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edgekit-test-optimum-")


@cache
def checkpoint(name: str) -> Path:
    """A checkpoint folder with weights, tokenizer and chat template: `qwen2`, `llama` (tied) or one of `MODELS`."""
    folder = Path(_temporary_folder().name) / name
    if name in MODELS:
        transformers_checkpoint(folder, name, MODELS[name])
        _add_remote_code(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(checkpoint("qwen2") / file, folder)
        return folder
    return tiny_checkpoint(folder, model_type=name, tied=name == "llama")


def _add_remote_code(folder: Path) -> None:
    """Let the checkpoint name code of its own, as some on the hub do; running it creates a file `ran`."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    path.write_text(json.dumps(config), encoding="utf-8")
    (folder / "theirs.py").write_text(f"open({str(folder / 'ran')!r}, 'w')", encoding="utf-8")


@cache
def float_graph(name: str) -> FloatGraph:
    """The graph that Optimum exports from that checkpoint."""
    oracle_python()
    folder = Path(_temporary_folder().name) / f"{name}-graph"
    folder.mkdir(exist_ok=True)
    config = json.loads((checkpoint(name) / "config.json").read_text(encoding="utf-8"))
    return export_graph(checkpoint(name), config, folder)
