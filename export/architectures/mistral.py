"""Mistral (model_type `mistral`): Llama without biases; the first releases use a sliding window in every layer.

Source: Jiang et al. 2023, arXiv:2310.06825, and `transformers/models/mistral/configuration_mistral.py` for defaults.
"""

from __future__ import annotations

from edgekit.export.architectures.build import Shape, build_decoder, refuse_sliding_layers, shared_rope, sliding_layers
from edgekit.export.architectures.config import Config
from edgekit.export.architectures.decoder import Decoder

__all__ = ["describe"]


def describe(config: Config, context_length: int | None) -> Decoder:
    """Describe a Mistral model from its `config.json`."""
    shape = Shape.read(config, context_length)
    window = config.integer("sliding_window") if config.get("sliding_window") is not None else None
    if window is None:
        refuse_sliding_layers(config, shape, "`sliding_window` is missing")
    sliding = sliding_layers(config, shape.layers, [window is not None] * shape.layers)
    return build_decoder(
        config,
        shape,
        rope=shared_rope(config, shape, 10_000.0),
        tied=config.flag("tie_word_embeddings", default=False),
        windows=[window if one else None for one in sliding],
    )
