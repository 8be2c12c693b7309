"""Phi-3, Phi-3.5 and Phi-4 (model_type `phi3`): q, k and v are stored as one matrix, gate and up as another.

The 128K releases stretch RoPE with LongRoPE, the 4K ones see a sliding window, Phi-4-mini turns a part of each head.
Source: Abdin et al. 2024, arXiv:2404.14219, and `transformers/models/phi3/configuration_phi3.py` for defaults.
"""

from __future__ import annotations

from typing import Any

from edgekit.errors import ExportError
from edgekit.export.architectures.config import Config
from edgekit.export.architectures.decoder import Decoder, Shape, build_decoder, plain_rope
from edgekit.export.architectures.rope import scaling_kind

__all__ = ["describe"]


def describe(config: Config, context_length: int | None) -> Decoder:
    """Describe a Phi-3 model from its `config.json`."""
    config = _original_length_inside(config)
    shape = Shape.read(config, context_length)
    window = config.integer("sliding_window") if config.get("sliding_window") is not None else None
    config.require("attention_bias", False)  # noqa: FBT003  the value of a key
    return build_decoder(
        config,
        shape,
        rope=plain_rope(config, shape, 10_000.0),
        tied=config.flag("tie_word_embeddings", default=False),
        fused=True,
        windows=[window] * shape.layers,
        eps=1e-5,
    )


def _original_length_inside(config: Config) -> Config:
    """Move the trained length, which Phi-3 keeps at the top, to where every other configuration has it.

    Raises:
        ExportError: Both places have one, and they differ.
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
        config = config.replaced(key, {**scaling, "original_max_position_embeddings": original})
    return config
