"""Llama 2 and 3, and models of the same architecture such as SmolLM2 and TinyLlama (model_type `llama`).

No bias unless the configuration says so. Source: Touvron et al. 2023, arXiv:2307.09288, and
`transformers/models/llama/configuration_llama.py` for defaults.
"""

from __future__ import annotations

from edgekit.export.architectures.build import Shape, build_decoder, shared_rope
from edgekit.export.architectures.config import Config
from edgekit.export.architectures.decoder import Decoder

__all__ = ["describe"]


def describe(config: Config, context_length: int | None) -> Decoder:
    """Describe a Llama model from its `config.json`."""
    shape = Shape.read(config, context_length)
    config.require("pretraining_tp", 1)
    config.require("rope_interleaved", False)  # noqa: FBT003  the value of a key
    bias = config.flag("attention_bias", default=False)
    return build_decoder(
        config,
        shape,
        rope=shared_rope(config, shape, 10_000.0),
        tied=config.flag("tie_word_embeddings", default=False),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=config.flag("mlp_bias", default=False),
    )
