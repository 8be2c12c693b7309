"""Mistral (model_type `mistral`): as Llama without biases; the first releases see a sliding window in every layer.

Source: Jiang et al. 2023, arXiv:2310.06825, and `transformers/models/mistral/configuration_mistral.py` for defaults.
"""

from __future__ import annotations

from edgekit.export.architectures.config import Config
from edgekit.export.architectures.decoder import (
    Decoder,
    Shape,
    build_decoder,
    no_windows,
    plain_rope,
    sliding_layers,
)

__all__ = ["describe"]


def describe(config: Config, context_length: int | None) -> Decoder:
    """Describe a Mistral model from its `config.json`."""
    shape = Shape.read(config, context_length)
    window = config.integer("sliding_window") if config.get("sliding_window") is not None else None
    if window is None:
        no_windows(config, shape, "there is no `sliding_window`")
    sliding = sliding_layers(config, shape.layers, [window is not None] * shape.layers)
    return build_decoder(
        config,
        shape,
        rope=plain_rope(config, shape, 10_000.0),
        tied=config.flag("tie_word_embeddings", default=False),
        windows=[window if one else None for one in sliding],
    )
