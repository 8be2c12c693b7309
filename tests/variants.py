"""Tiny checkpoints by name that together have every feature of the supported architectures.

A test that is parametrised over `VARIANTS` covers all architectures; a new feature is a new line here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.models import tiny_checkpoint

__all__ = ["VARIANTS", "variant"]

_FACTORS = {
    "short_factor": [1.0 + 0.1 * i for i in range(16)],
    "long_factor": [1.0 + 0.5 * i for i in range(16)],
}
_PARTIAL = {key: values[:12] for key, values in _FACTORS.items()}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2"},
    "qwen2-tied": {"model_type": "qwen2", "tied": True},
    "qwen2-yarn": {
        "model_type": "qwen2",
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 48, "tied": True},
    "llama": {"model_type": "llama"},
    "llama-biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tied": True},
    "llama3": {"model_type": "llama", "rope_scaling": _LLAMA3},
    "llama-nested-rope": {
        "model_type": "llama",
        "rope_theta": None,
        "rope_parameters": {"rope_theta": 70_000.0, **_LLAMA3},
    },
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 64},
    "mistral-window": {"model_type": "mistral", "sliding_window": 12},
    "phi3": {"model_type": "phi3", "sliding_window": 200},
    "phi3-longrope": {
        "model_type": "phi3",
        "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", **_FACTORS},
    },
    "phi3-partial": {
        "model_type": "phi3",
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.75,
        "kv_heads": 4,
        "rope_scaling": {"type": "longrope", **_PARTIAL},
    },
    "gemma3_text": {
        "model_type": "gemma3_text",
        "layers": 4,
        # A square: mlx-lm rounds its root, which scales the embedding, to bfloat16.
        "hidden": 256,
        "tied": True,
        "head_dim": 64,
        "kv_heads": 1,
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 96,
        "sliding_window": 12,
        "sliding_window_pattern": 3,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
}


def variant(name: str, folder: Path, **options: Any) -> Path:
    """Write a variant into a folder and return the folder; `options` are `tiny_checkpoint`'s."""
    return tiny_checkpoint(folder, **{**VARIANTS[name], **options})
