"""Builds a `Decoder` from a `config.json`: what the architecture files share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.errors import ExportError, option
from edgekit.export.architectures.config import Config
from edgekit.export.architectures.decoder import Decoder, Layer, Linear
from edgekit.export.architectures.rope import Rope, full_scaling, known_kind, read_rope, same_scaling, scaled_context

__all__ = ["Shape", "build_decoder", "consistent_number", "refuse_sliding_layers", "shared_rope", "sliding_layers"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that every architecture states under the same keys.

    Attributes:
        max_context: Longest sequence that the model and its RoPE scaling allow.
        context_length: Longest sequence to export for.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_position: int
    max_context: int
    context_length: int

    @classmethod
    def read(cls, config: Config, context_length: int | None = None, *, head_dim: int | None = None) -> Shape:
        """Read the sizes.

        Args:
            config: The configuration.
            context_length: Longest sequence to export for; None takes the model's maximum.
            head_dim: The architecture's default; None divides the hidden size by the number of heads.

        Raises:
            ExportError: A size is missing, of the wrong type, or inconsistent with another.
        """
        hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        kv_heads = config.integer("num_key_value_heads", heads)
        if heads % kv_heads:
            raise ExportError(f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads")
        max_position = config.integer("max_position_embeddings")
        max_context = scaled_context(
            full_scaling(config.get("rope_scaling"), config.get("rope_parameters")), max_position
        )
        if context_length is not None and not 0 < context_length <= max_context:
            raise ExportError(
                f"the model's context is {max_context} tokens; it cannot be exported for {context_length}",
                hint=f"use a smaller {option('context_length')}, or extend it with {option('yarn')} if the model card "
                "recommends it",
            )
        return cls(
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=config.integer("num_hidden_layers", limit=1 << 12),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=config.integer("head_dim", head_dim or max(1, hidden // heads), limit=1 << 16),
            vocab=config.integer("vocab_size"),
            max_position=max_position,
            max_context=max_context,
            context_length=context_length or max_context,
        )


def shared_rope(config: Config, shape: Shape, default_theta: float) -> Rope:
    """Read the rotary embedding that all layers share.

    transformers 5 nests everything in `rope_parameters`; earlier versions keep `rope_theta` and `rope_scaling` at the
    top level, and transformers 5 also reads these values from inside an older `rope_scaling`.

    Args:
        config: The configuration.
        shape: Its sizes.
        default_theta: The architecture's base.

    Raises:
        ExportError: Two keys disagree, or the scaling is not supported.
    """
    nested, scaling = (_object(config, key) for key in ("rope_parameters", "rope_scaling"))
    if scaling and known_kind(nested) != "default" and not same_scaling(scaling, nested):
        raise ExportError("config.json: `rope_scaling` and `rope_parameters` disagree")
    theta, fraction = (
        consistent_number(
            key,
            default,
            {
                key: config.get(key),
                f"rope_parameters.{key}": nested.get(key),
                f"rope_scaling.{key}": scaling.get(key),
            },
        )
        for key, default in (("rope_theta", default_theta), ("partial_rotary_factor", 1.0))
    )
    dim = int(shape.head_dim * min(fraction, 2.0))  # more than 1 is refused below
    if fraction != 1:
        config.normalized["partial_rotary_factor"] = fraction
    if dim % 2 or not 2 <= dim <= shape.head_dim:
        raise ExportError(
            f"config.json: RoPE cannot rotate {dim} of {shape.head_dim} elements of a head; it rotates them in pairs"
        )
    return read_rope(
        theta, dim, scaling or nested, max_position=shape.max_position, context_length=shape.context_length
    )


def consistent_number(key: str, default: float, stated: Mapping[str, Any]) -> float:
    """Return a positive number that several keys may state, if they all agree.

    Args:
        key: Its usual key.
        default: Its value if no key states it.
        stated: The value under each key, None where it is missing.

    Raises:
        ExportError: Two keys disagree, or it is not a positive number.
    """
    numbers = {name: Config({key: value}).number(key) for name, value in stated.items() if value is not None}
    if len(set(numbers.values())) > 1:
        raise ExportError(f"config.json: {' and '.join(f'`{name}`' for name in numbers)} disagree")
    return next(iter(numbers.values()), default)


def _object(config: Config, key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise ExportError(f"config.json: `{key}` must be an object, not {str(value)[:40]!r}")
    return value


def sliding_layers(config: Config, layers: int, default: list[bool]) -> list[bool]:
    """Which layers use a sliding window: from `layer_types`, else the architecture's own rule.

    Raises:
        ExportError: `layer_types` is malformed or names an unsupported kind.
    """
    types = config.get("layer_types")
    if types is None:
        types = ["sliding_attention" if sliding else "full_attention" for sliding in default]
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != layers or any(kind not in known for kind in types):
        raise ExportError(
            f"config.json: `layer_types` must name one of {', '.join(known)} for each of {layers} layers",
            code="unsupported_configuration",
        )
    config.normalized["layer_types"] = types
    return [kind == "sliding_attention" for kind in types]


def refuse_sliding_layers(config: Config, shape: Shape, reason: str) -> None:
    """Refuse a `layer_types` that names sliding layers.

    Raises:
        ExportError: It does; `reason` says what contradicts it.
    """
    if any(sliding_layers(config, shape.layers, [False] * shape.layers)):
        raise ExportError(
            f"config.json: `layer_types` has sliding layers, but {reason}", code="unsupported_configuration"
        )


def build_decoder(
    config: Config,
    shape: Shape,
    *,
    rope: Rope,
    tied: bool,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    fused: bool = False,
    windows: list[int | None] | None = None,
    eps: float = 1e-6,
) -> Decoder:
    """Fill in the description of a llama-shaped decoder (RMSNorm, GQA, SwiGLU).

    Args:
        config: The configuration; it is finished here, so that no key is left unread.
        shape: Its sizes.
        rope: Rotary embedding of all layers.
        tied: The embedding is also the output head.
        qkv_bias: q, k and v have a bias.
        o_bias: o has a bias.
        mlp_bias: gate, up and down have a bias.
        qk_norm: Every query and key head is normalized before RoPE.
        fused: The checkpoint stores q, k and v as one matrix, and gate and up as one.
        windows: Sliding window of each layer in tokens; None attends to all.
        eps: The architecture's default of `rms_norm_eps`.

    Raises:
        ExportError: A value is missing, of the wrong type, or not supported.
    """
    config.require("hidden_act", "silu")
    q_rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def layer(index: int) -> Layer:
        prefix = f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = Linear(f"{attention}.qkv_proj", shape.hidden, q_rows + 2 * kv_rows, qkv_bias) if fused else None
        gate_up = Linear(f"{mlp}.gate_up_proj", shape.hidden, 2 * shape.intermediate, mlp_bias) if fused else None

        def part(name: str, out: int, bias: bool, part_of: Linear | None, first_row: int) -> Linear:
            return Linear(name, shape.hidden, out, bias, part_of, first_row if part_of else 0)

        return Layer(
            index=index,
            input_norm=f"{prefix}.input_layernorm.weight",
            q=part(f"{attention}.q_proj", q_rows, qkv_bias, qkv, 0),
            k=part(f"{attention}.k_proj", kv_rows, qkv_bias, qkv, q_rows),
            v=part(f"{attention}.v_proj", kv_rows, qkv_bias, qkv, q_rows + kv_rows),
            o=Linear(f"{attention}.o_proj", q_rows, shape.hidden, o_bias),
            mlp_norm=f"{prefix}.post_attention_layernorm.weight",
            gate=part(f"{mlp}.gate_proj", shape.intermediate, mlp_bias, gate_up, 0),
            up=part(f"{mlp}.up_proj", shape.intermediate, mlp_bias, gate_up, shape.intermediate),
            down=Linear(f"{mlp}.down_proj", shape.intermediate, shape.hidden, mlp_bias),
            rope=rope,
            q_norm=f"{attention}.q_norm.weight" if qk_norm else None,
            k_norm=f"{attention}.k_norm.weight" if qk_norm else None,
            window=windows[index] if windows else None,
        )

    eps = config.number("rms_norm_eps", eps)
    config.finish()
    return Decoder(
        model_type=config.model_type,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        rms_norm_eps=eps,
        max_position=shape.context_length,
        tied=tied,
        embedding=Linear("model.embed_tokens", shape.hidden, shape.vocab),
        layers=tuple(layer(index) for index in range(shape.layers)),
        final_norm="model.norm.weight",
        head=Linear("lm_head", shape.hidden, shape.vocab),
        attention_scale=shape.head_dim**-0.5,
        config=config.normalized,
    )
