"""Gemma 3's text models (model_type `gemma3_text`): four norms per layer, a sliding window in most layers.

Norms store `weight - 1`; the embedding is multiplied by the square root of its width; the gate is a GELU. Sliding
layers have a RoPE of their own. Source: Gemma Team 2025, arXiv:2503.19786, and
`transformers/models/gemma3/configuration_gemma3.py` for defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgekit.errors import ExportError
from edgekit.export.architectures.build import Shape, build_decoder, consistent_number, shared_rope, sliding_layers
from edgekit.export.architectures.config import Config
from edgekit.export.architectures.decoder import Decoder, Layer
from edgekit.export.architectures.rope import Rope, read_rope, same_scaling

__all__ = ["describe"]


def describe(config: Config, context_length: int | None) -> Decoder:
    """Describe a Gemma 3 text model from its `config.json`."""
    shape = Shape.read(config, context_length, head_dim=256)
    config.require("hidden_activation", "gelu_pytorch_tanh")
    config.require("use_bidirectional_attention", False)  # noqa: FBT003  the value of a key
    config.require("attention_bias", False)  # noqa: FBT003  the value of a key
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key) is not None:
            config.require(key, None)
    window = config.integer("sliding_window", 4096)
    old, new = config.get("sliding_window_pattern"), config.get("_sliding_window_pattern")
    pattern: Any = next((value for value in (old, new) if value is not None), 6)
    if type(pattern) is not int or pattern < 1:
        raise ExportError(f"config.json: `sliding_window_pattern` must be a positive integer, not {str(pattern)[:60]}")
    sliding = sliding_layers(config, shape.layers, [(index + 1) % pattern != 0 for index in range(shape.layers)])
    scalar = config.number("query_pre_attn_scalar", 256.0)
    global_rope, local_rope = _ropes(config, shape)
    config.normalized["sliding_window_pattern"] = _pattern(sliding, pattern)
    decoder = build_decoder(
        config,
        shape,
        rope=global_rope,
        tied=config.flag("tie_word_embeddings", default=True),
        qk_norm=True,
        windows=[window if one else None for one in sliding],
    )
    del config.normalized["hidden_act"]
    return replace(
        decoder,
        layers=tuple(_four_norms(layer, local_rope) for layer in decoder.layers),
        attention_scale=scalar**-0.5,
        activation="gelu_tanh",
        norm_offset=1.0,
        embedding_scale=shape.hidden**0.5,
    )


def _ropes(config: Config, shape: Shape) -> tuple[Rope, Rope]:
    """The RoPE of the full-attention layers, and of the sliding layers."""
    nested: Any = config.get("rope_parameters")
    if isinstance(nested, Mapping) and nested.keys() & _KINDS.keys():  # transformers 5 has one for each kind of layer
        global_rope, local_rope = (_rope_of(kind, nested, config, shape) for kind in _KINDS)
    else:
        global_rope = shared_rope(config, shape, 1_000_000.0)
        theta = config.number("rope_local_base_freq", 10_000.0)
        local_rope = read_rope(
            theta, shape.head_dim, None, max_position=shape.max_position, context_length=shape.context_length
        )
    if global_rope.dim != shape.head_dim:
        raise ExportError(
            "config.json: `partial_rotary_factor` is not supported for `gemma3_text`", code="unsupported_configuration"
        )
    if local_rope.kind != "default":
        raise ExportError(
            f"config.json: RoPE scaling `{local_rope.kind}` of the sliding layers is not supported",
            code="unsupported_configuration",
        )
    config.normalized["rope_local_base_freq"] = local_rope.theta
    return global_rope, local_rope


# Kind of layer, as transformers 5 nests it -> key of its base in older configurations, and the default.
_KINDS = {"full_attention": ("rope_theta", 1_000_000.0), "sliding_attention": ("rope_local_base_freq", 10_000.0)}


def _rope_of(kind: str, nested: Mapping[str, Any], config: Config, shape: Shape) -> Rope:
    """The RoPE of one kind of layer, as transformers 5 nests it."""
    unknown = sorted(nested.keys() - _KINDS.keys())
    own, scaling = nested.get(kind) or {}, config.get("rope_scaling")
    if unknown or not isinstance(own, Mapping):
        raise ExportError(
            f"config.json: `rope_parameters.{unknown[0] if unknown else kind}` is not supported",
            code="unsupported_configuration",
        )
    if kind == "full_attention" and scaling and not same_scaling(scaling, own):
        raise ExportError(f"config.json: `rope_scaling` and `rope_parameters.{kind}` disagree")
    if own.get("partial_rotary_factor", 1.0) != 1.0:
        raise ExportError(
            f"config.json: `rope_parameters.{kind}.partial_rotary_factor` is not supported",
            code="unsupported_configuration",
        )
    older, default = _KINDS[kind]
    theta = consistent_number(
        "rope_theta",
        default,
        {f"rope_parameters.{kind}.rope_theta": own.get("rope_theta"), older: config.get(older)},
    )
    return read_rope(theta, shape.head_dim, own, max_position=shape.max_position, context_length=shape.context_length)


def _pattern(sliding: list[bool], stated: int) -> int:
    """Period of the full-attention layers, which mlx-lm reads instead of `layer_types`; 0 if they have none."""
    candidates: list[int] = [stated, *range(1, len(sliding) + 1)]
    for pattern in candidates:
        if sliding == [(index + 1) % pattern != 0 for index in range(len(sliding))]:
            return pattern
    return 0


def _four_norms(layer: Layer, local_rope: Rope) -> Layer:
    prefix = f"model.layers.{layer.index}"
    return replace(
        layer,
        attention_out_norm=f"{prefix}.post_attention_layernorm.weight",
        mlp_norm=f"{prefix}.pre_feedforward_layernorm.weight",
        mlp_out_norm=f"{prefix}.post_feedforward_layernorm.weight",
        rope=layer.rope if layer.window is None else local_rope,
    )
