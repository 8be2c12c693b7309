"""Qwen2 and Qwen2.5 (model_type `qwen2`): bias on q, k and v; embeddings tied in the small sizes.

Source: Yang et al. 2024, arXiv:2407.10671, and `transformers/models/qwen2/configuration_qwen2.py` for defaults.
"""

from __future__ import annotations

from edgekit.export.architectures.build import Shape, build_decoder, refuse_sliding_layers, shared_rope, sliding_layers
from edgekit.export.architectures.config import Config
from edgekit.export.architectures.decoder import Decoder

__all__ = ["describe", "windows"]


def describe(config: Config, context_length: int | None) -> Decoder:
    """Describe a Qwen2 model from its `config.json`."""
    shape = Shape.read(config, context_length)
    config.require("use_mrope", False)  # noqa: FBT003  the value of a key
    return build_decoder(
        config,
        shape,
        rope=shared_rope(config, shape, 10_000.0),
        tied=config.flag("tie_word_embeddings", default=False),
        qkv_bias=True,
        windows=windows(config, shape),
    )


def windows(config: Config, shape: Shape) -> list[int | None] | None:
    """Sliding window of each layer: from `max_window_layers` on, if `use_sliding_window` is true; also for Qwen3."""
    first, size = config.get("max_window_layers"), config.get("sliding_window")
    if not config.flag("use_sliding_window", default=False):
        refuse_sliding_layers(config, shape, "`use_sliding_window` is false")
        return None
    first = 28 if first is None else first
    if type(first) is int:
        config.normalized["max_window_layers"] = first
    window = config.integer("sliding_window", 4096 if size is None else size)
    sliding = sliding_layers(config, shape.layers, [type(first) is int and i >= first for i in range(shape.layers)])
    return [window if one else None for one in sliding]
