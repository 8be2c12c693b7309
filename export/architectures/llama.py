"""Llama and its shape-alikes SmolLM2 and TinyLlama (model_type `llama`): no bias unless the configuration says so.

Source: Touvron et al. 2023, arXiv:2307.09288, and `transformers/models/llama/configuration_llama.py` for defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.export.architectures.decoder import Decoder, build_decoder

__all__ = ["describe"]


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Llama model from its `config.json`."""
    attention_bias = bool(config.get("attention_bias", False))
    return build_decoder(
        config,
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        default_theta=10_000.0,
        default_tied=False,
    )
