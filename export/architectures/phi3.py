"""Phi-3, Phi-3.5 and Phi-4 (model_type `phi3`): q, k and v are stored as one matrix, gate and up as another.

The 128K releases extend RoPE with LongRoPE, the 4K ones use a sliding window, Phi-4-mini rotates part of each head.
Source: Abdin et al. 2024, arXiv:2404.14219, and `transformers/models/phi3/configuration_phi3.py` for defaults.
"""

from __future__ import annotations

from typing import Any

from edgekit.errors import ExportError
from edgekit.export.architectures.build import Shape, build_decoder, shared_rope
from edgekit.export.architectures.config import Config
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.architectures.rope import scaling_kind

__all__ = ["describe"]


def describe(config: Config, context_length: int | None) -> Decoder:
    """Describe a Phi-3 model from its `config.json`."""
    config = _move_original_length(config)
    shape = Shape.read(config, context_length)
    window = config.integer("sliding_window") if config.get("sliding_window") is not None else None
    config.require("attention_bias", False)  # noqa: FBT003  the value of a key
    # Phi-4-mini states them; its own code has them for layers of two kinds and a stretched RoPE, which 1 turns off.
    for key in ("full_attn_mod", "interpolate_factor"):
        if config.get(key) is not None:
            config.require(key, 1)
            del config.normalized[key]
    return build_decoder(
        config,
        shape,
        rope=shared_rope(config, shape, 10_000.0),
        tied=config.flag("tie_word_embeddings", default=False),
        fused=True,
        windows=[window] * shape.layers,
        eps=1e-5,
    )


def _move_original_length(config: Config) -> Config:
    """Move the trained length from the top level, where Phi-3 keeps it, into the scaling, where all others have it.

    Raises:
        ExportError: Both have one, and they differ.
    """
    if config.get("original_max_position_embeddings") is None:
        return config
    original = config.integer("original_max_position_embeddings")
    for key in ("rope_scaling", "rope_parameters"):
        scaling: Any = config.get(key)
        if not scaling or scaling_kind(scaling) in {"default", "linear"}:
            continue
        if scaling.get("original_max_position_embeddings", original) != original:
            raise ExportError(
                f"config.json: `original_max_position_embeddings` and `{key}.original_max_position_embeddings` disagree"
            )
        config = config.with_value(key, {**scaling, "original_max_position_embeddings": original})
    return config
