"""A decoder-only transformer, described once: which tensors exist, how they are named, how a layer is wired.

    ids ─ embedding (· scale) ─▶ [ layer ] × N ─▶ norm ─ head ─▶ logits

    layer:  x ─┬─ norm ─ q,k,v ─ (norm q,k) ─ RoPE ─ attention ─ o ─ (norm) ─ + ─▶ y
               └─────────────────────────────────────────────────────────────┘
            y ─┬─ norm ─ down(act(gate) · up) ─ (norm) ─ + ─▶
               └─────────────────────────────────────────┘

Only some architectures have the steps in parentheses. Every norm is an RMSNorm. Both writers read this description; an
architecture file only fills it in. It holds no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgekit.export.architectures.rope import Rope

__all__ = ["Activation", "Decoder", "Layer", "Linear", "Rope"]

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class Linear:
    """`y = x Wᵀ (+ b)`, W shaped `[out_features, in_features]`.

    Attributes:
        name: Hugging Face module path, `model.layers.0.self_attn.q_proj`.
        part_of: The fused matrix that has this one as a range of its rows; None if the checkpoint stores it separately.
        first_row: Its first row in `part_of`.
    """

    name: str
    in_features: int
    out_features: int
    bias: bool = False
    part_of: Linear | None = None
    first_row: int = 0

    @property
    def weight(self) -> str:
        """Name of the weight; the checkpoint has a tensor of that name unless this is part of a fused matrix."""
        return f"{self.name}.weight"

    @property
    def bias_name(self) -> str:
        """Name of the bias; it exists only where `bias` is true."""
        return f"{self.name}.bias"

    @property
    def stored(self) -> Linear:
        """The matrix as the checkpoint stores it: this one, or the fused one that it is part of."""
        return self.part_of or self

    @property
    def rows(self) -> slice:
        """Its rows in `stored`."""
        return slice(self.first_row, self.first_row + self.out_features)


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block. Norms are tensor names; the rest are linear layers.

    Attributes:
        q_norm: Norm of every query head, `[head_dim]`; None if the architecture has none. Likewise `k_norm`.
        attention_out_norm: Norm of the attention output before the residual add; None if absent.
        mlp_norm: Norm before the MLP (Llama calls it `post_attention_layernorm`).
        mlp_out_norm: Norm of the MLP output before the residual add; None if absent.
        rope: Rotary embedding of queries and keys.
        window: Sliding window in tokens, the token itself included; None attends to all previous tokens.
    """

    index: int
    input_norm: str
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    mlp_norm: str
    gate: Linear
    up: Linear
    down: Linear
    rope: Rope
    q_norm: str | None = None
    k_norm: str | None = None
    attention_out_norm: str | None = None
    mlp_out_norm: str | None = None
    window: int | None = None

    def linears(self) -> tuple[Linear, ...]:
        """The seven weight matrices, in order of use."""
        return (self.q, self.k, self.v, self.o, self.gate, self.up, self.down)


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder-only model.

    Attributes:
        embedding: The token table; as a `Linear` its weight is `[vocab, hidden]`, the shape of an output head.
        head: The output head. Where `tied`, the checkpoint has no such tensor and the embedding serves.
        max_position: The longest sequence in tokens.
        activation: Activation function of the gate.
        attention_scale: Factor on the attention scores, queries times keys.
        norm_offset: Added to every norm's weight: 1 where a checkpoint stores `weight - 1`.
        embedding_scale: Factor on the embedding's rows; None is 1.
        config: A `config.json` of the same model under Hugging Face's keys, without RoPE and data type.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position: int
    tied: bool
    embedding: Linear
    layers: tuple[Layer, ...]
    final_norm: str
    head: Linear
    attention_scale: float
    activation: Activation = "silu"
    norm_offset: float = 0.0
    embedding_scale: float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rope(self) -> Rope:
        """The rotary embedding of the full-attention layers; of the first layer if there are none."""
        return next((layer.rope for layer in self.layers if layer.window is None), self.layers[0].rope)

    @property
    def windowed(self) -> bool:
        """Whether a layer's window is shorter than the longest sequence."""
        return any(layer.window is not None and layer.window < self.max_position for layer in self.layers)

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """KV cache bytes that one token takes: a key and a value per layer and key/value head."""
        return 2 * element_bytes * len(self.layers) * self.num_kv_heads * self.head_dim

    def linears(self) -> Iterator[Linear]:
        """Every weight matrix except the embedding and, where tied, the head, in order of use."""
        for layer in self.layers:
            yield from layer.linears()
        if not self.tied:
            yield self.head

    def stored_linears(self) -> Iterator[Linear]:
        """As `linears`, but as the checkpoint stores them: a fused matrix once, where its first part is used."""
        last: Linear | None = None
        for linear in self.linears():
            if linear.stored != last:
                yield linear.stored
            last = linear.stored

    def norms(self) -> dict[str, int]:
        """Every norm's tensor name and length."""
        sizes: dict[str, int] = {}
        for layer in self.layers:
            heads = dict.fromkeys(filter(None, (layer.q_norm, layer.k_norm)), self.head_dim)
            hidden = (layer.input_norm, layer.attention_out_norm, layer.mlp_norm, layer.mlp_out_norm)
            sizes |= dict.fromkeys(filter(None, hidden), self.hidden_size) | heads
        return {**sizes, self.final_norm: self.hidden_size}

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that a checkpoint of this model must have, by name."""
        shapes: dict[str, tuple[int, ...]] = {self.embedding.weight: (self.vocab_size, self.hidden_size)}
        for linear in self.stored_linears():
            shapes[linear.weight] = (linear.out_features, linear.in_features)
            if linear.bias:
                shapes[linear.bias_name] = (linear.out_features,)
        return shapes | {name: (size,) for name, size in self.norms().items()}
