"""A decoder-only transformer, described once: which tensors exist, how they are named, how a layer is wired.

    ids ─ embedding ─▶ [ layer ] × N ─▶ RMSNorm ─▶ head ─▶ logits

    layer:  x ─┬─ RMSNorm ─ q,k,v ─ RoPE ─ attention ─ o ─ + ─┬─ RMSNorm ─ down(silu(gate) · up) ─ + ─▶
               └──────────────────────────────────────────┘   └──────────────────────────────────┘

Both writers read this description; an architecture file only fills it in. It holds no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.errors import ExportError

__all__ = ["Decoder", "Layer", "Linear", "Rope", "build_decoder"]


@dataclass(frozen=True, slots=True)
class Linear:
    """`y = x Wᵀ (+ b)`, W shaped `[out_features, in_features]`.

    Attributes:
        name: Hugging Face module path, `model.layers.0.self_attn.q_proj`.
    """

    name: str
    in_features: int
    out_features: int
    bias: bool = False

    @property
    def weight(self) -> str:
        """Tensor name of the weight."""
        return f"{self.name}.weight"

    @property
    def bias_name(self) -> str:
        """Tensor name of the bias; it exists only where `bias` is true."""
        return f"{self.name}.bias"


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding, half-split ("rotate half") layout over the whole head.

    Source: Su et al. 2021, arXiv:2104.09864; angle of pair i at position p is `p * theta**(-2i/dim)`.
    """

    theta: float
    dim: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block. Norms are tensor names; the rest are linear layers."""

    index: int
    input_norm: str
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    post_norm: str
    gate: Linear
    up: Linear
    down: Linear

    def linears(self) -> tuple[Linear, ...]:
        """The seven weight matrices, in the order of use."""
        return (self.q, self.k, self.v, self.o, self.gate, self.up, self.down)


@dataclass(frozen=True, slots=True)
class Decoder:
    """The whole model.

    Attributes:
        embedding: The token table; as a `Linear` its weight is `[vocab, hidden]`, the shape of an output head.
        head: The output head. Where `tied`, the checkpoint has no such tensor and the embedding serves.
        max_position: The longest context the model was trained for, in tokens.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: Rope
    max_position: int
    tied: bool
    embedding: Linear
    layers: tuple[Layer, ...]
    final_norm: str
    head: Linear

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """KV cache bytes that one token takes: a key and a value per layer and key/value head."""
        return 2 * element_bytes * len(self.layers) * self.num_kv_heads * self.head_dim

    def linears(self) -> Iterator[Linear]:
        """Every weight matrix but the embedding and, where tied, the head, in the order of use."""
        for layer in self.layers:
            yield from layer.linears()
        if not self.tied:
            yield self.head

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor a checkpoint of this model must have, by name."""
        shapes: dict[str, tuple[int, ...]] = {self.embedding.weight: (self.vocab_size, self.hidden_size)}
        for linear in self.linears():
            shapes[linear.weight] = (linear.out_features, linear.in_features)
            if linear.bias:
                shapes[linear.bias_name] = (linear.out_features,)
        for layer in self.layers:
            shapes[layer.input_norm] = shapes[layer.post_norm] = (self.hidden_size,)
        shapes[self.final_norm] = (self.hidden_size,)
        return shapes


def positive_int(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return `config[key]` as a positive integer.

    Raises:
        ExportError: It is missing or something else.
    """
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ExportError(f"config.json: `{key}` must be a positive integer, not {value!r}")
    return value


def positive_float(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Return `config[key]` as a positive float.

    Raises:
        ExportError: It is missing or something else.
    """
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ExportError(f"config.json: `{key}` must be a positive number, not {value!r}")
    return float(value)


def rope_theta(config: Mapping[str, Any], default: float) -> float:
    """Find the RoPE base: transformers 5 nests it in `rope_parameters`, earlier versions keep it at the top.

    Raises:
        ExportError: The two disagree, or a scaling is asked for that is not handled.
    """
    nested = config.get("rope_parameters") or {}
    for section in (nested, config.get("rope_scaling") or {}):
        kind = section.get("rope_type", section.get("type", "default"))
        if kind != "default":
            raise ExportError(
                f"config.json: RoPE scaling `{kind}` is not supported",
                hint="export the checkpoint without rope_scaling, within its trained context length",
                code="unsupported_configuration",
            )
    if "rope_theta" in nested and "rope_theta" in config and nested["rope_theta"] != config["rope_theta"]:
        raise ExportError("config.json: `rope_theta` and `rope_parameters.rope_theta` disagree")
    source = nested if "rope_theta" in nested else config
    return positive_float(source, "rope_theta", default)


def require(config: Mapping[str, Any], key: str, allowed: tuple[Any, ...]) -> None:
    """Refuse a configuration whose `key` is present with a value that changes the mathematics.

    Raises:
        ExportError: The value is not one of `allowed`.
    """
    if key in config and config[key] not in allowed:
        raise ExportError(
            f"config.json: `{key}: {config[key]!r}` is not supported",
            hint=f"supported: {', '.join(repr(value) for value in allowed)}",
            code="unsupported_configuration",
        )


def build_decoder(
    config: Mapping[str, Any],
    *,
    qkv_bias: bool,
    o_bias: bool,
    mlp_bias: bool,
    default_theta: float,
    default_tied: bool,
) -> Decoder:
    """Fill in the description of a llama-shaped decoder (RMSNorm, GQA, SwiGLU) from `config.json`.

    Raises:
        ExportError: A value is missing, of the wrong kind, or inconsistent with another.
    """
    require(config, "hidden_act", ("silu",))
    hidden = positive_int(config, "hidden_size")
    heads = positive_int(config, "num_attention_heads")
    kv_heads = positive_int(config, "num_key_value_heads", heads)
    head_dim = positive_int(config, "head_dim", hidden // heads)
    if heads % kv_heads:
        raise ExportError(f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads")
    if head_dim % 2:
        raise ExportError(f"config.json: head_dim {head_dim} is odd; RoPE needs pairs")
    intermediate = positive_int(config, "intermediate_size")
    vocab = positive_int(config, "vocab_size")

    def layer(index: int) -> Layer:
        prefix = f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        return Layer(
            index=index,
            input_norm=f"{prefix}.input_layernorm.weight",
            q=Linear(f"{attention}.q_proj", hidden, heads * head_dim, qkv_bias),
            k=Linear(f"{attention}.k_proj", hidden, kv_heads * head_dim, qkv_bias),
            v=Linear(f"{attention}.v_proj", hidden, kv_heads * head_dim, qkv_bias),
            o=Linear(f"{attention}.o_proj", heads * head_dim, hidden, o_bias),
            post_norm=f"{prefix}.post_attention_layernorm.weight",
            gate=Linear(f"{mlp}.gate_proj", hidden, intermediate, mlp_bias),
            up=Linear(f"{mlp}.up_proj", hidden, intermediate, mlp_bias),
            down=Linear(f"{mlp}.down_proj", intermediate, hidden, mlp_bias),
        )

    return Decoder(
        model_type=str(config["model_type"]),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        rms_norm_eps=positive_float(config, "rms_norm_eps", 1e-6),
        rope=Rope(theta=rope_theta(config, default_theta), dim=head_dim),
        max_position=positive_int(config, "max_position_embeddings"),
        tied=bool(config.get("tie_word_embeddings", default_tied)),
        embedding=Linear("model.embed_tokens", hidden, vocab),
        layers=tuple(layer(i) for i in range(positive_int(config, "num_hidden_layers"))),
        final_norm="model.norm.weight",
        head=Linear("lm_head", hidden, vocab),
    )
