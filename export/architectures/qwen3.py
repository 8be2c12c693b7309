"""Qwen3 (model_type `qwen3`): Qwen2 without biases, with every query and key head normalized before RoPE.

Source: Yang et al. 2025, arXiv:2505.09388, and `transformers/models/qwen3/configuration_qwen3.py` for defaults.
"""

from __future__ import annotations

from edgekit.export.architectures.build import Shape, build_decoder, shared_rope
from edgekit.export.architectures.config import Config
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.architectures.qwen2 import windows

__all__ = ["describe"]


def describe(config: Config, context_length: int | None) -> Decoder:
    """Describe a Qwen3 model from its `config.json`."""
    shape = Shape.read(config, context_length, head_dim=128)
    bias = config.flag("attention_bias", default=False)
    return build_decoder(
        config,
        shape,
        rope=shared_rope(config, shape, 10_000.0),
        tied=config.flag("tie_word_embeddings", default=False),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        windows=windows(config, shape),
    )
