"""Qwen2 and Qwen2.5 (model_type `qwen2`): bias on q, k and v; embeddings tied in the small sizes.

Source: Yang et al. 2024, arXiv:2407.10671, and `transformers/models/qwen2/configuration_qwen2.py` for defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.export.architectures.decoder import Decoder, build_decoder, require

__all__ = ["describe"]


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Qwen2 model from its `config.json`."""
    require(config, "use_sliding_window", (False, None))
    return build_decoder(
        config, qkv_bias=True, o_bias=False, mlp_bias=False, default_theta=10_000.0, default_tied=False
    )
