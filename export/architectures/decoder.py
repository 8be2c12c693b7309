"""A decoder-only transformer, described once: which tensors exist, how they are named, how a layer is wired.

    ids ─ embedding (· scale) ─▶ [ layer ] × N ─▶ norm ─ head ─▶ logits

    layer:  x ─┬─ norm ─ q,k,v ─ (norm q,k) ─ RoPE ─ attention ─ o ─ (norm) ─ + ─▶ y
               └─────────────────────────────────────────────────────────────┘
            y ─┬─ norm ─ down(act(gate) · up) ─ (norm) ─ + ─▶
               └─────────────────────────────────────────┘

What stands in brackets some architectures have. Every norm is an RMSNorm. Both writers read this description; an
architecture file only fills it in. It holds no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgekit.errors import ExportError
from edgekit.export.architectures.config import Config
from edgekit.export.architectures.rope import Rope, full_scaling, known_kind, read_rope, same_scaling, scaled_context

__all__ = [
    "Activation",
    "Decoder",
    "Layer",
    "Linear",
    "Rope",
    "Shape",
    "build_decoder",
    "no_windows",
    "one_number",
    "plain_rope",
    "sliding_layers",
]

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class Linear:
    """`y = x Wᵀ (+ b)`, W shaped `[out_features, in_features]`.

    Attributes:
        name: Hugging Face module path, `model.layers.0.self_attn.q_proj`.
        part_of: The matrix that the checkpoint stores this one in, as a range of its rows; None where it has its own.
        first_row: Where in `part_of` it begins.
    """

    name: str
    in_features: int
    out_features: int
    bias: bool = False
    part_of: Linear | None = None
    first_row: int = 0

    @property
    def weight(self) -> str:
        """Name of the weight; the checkpoint has a tensor of that name unless this is a part of another."""
        return f"{self.name}.weight"

    @property
    def bias_name(self) -> str:
        """Name of the bias; it exists only where `bias` is true."""
        return f"{self.name}.bias"

    @property
    def stored(self) -> Linear:
        """The matrix as the checkpoint has it: this one, or the one that it is a part of."""
        return self.part_of or self

    @property
    def rows(self) -> slice:
        """Its rows in `stored`."""
        return slice(self.first_row, self.first_row + self.out_features)


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block. Norms are tensor names; the rest are linear layers.

    Attributes:
        q_norm: Norm of every query head, `[head_dim]`; None where there is none. So with `k_norm`.
        attention_out_norm: Norm of the attention's output before it is added; None where there is none.
        mlp_norm: Norm before the MLP (Llama calls it `post_attention_layernorm`).
        mlp_out_norm: Norm of the MLP's output before it is added; None where there is none.
        rope: How queries and keys are turned.
        window: A token sees this many tokens, itself included; None sees all before it.
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
        """The seven weight matrices, in the order of use."""
        return (self.q, self.k, self.v, self.o, self.gate, self.up, self.down)


@dataclass(frozen=True, slots=True)
class Decoder:
    """The whole model.

    Attributes:
        embedding: The token table; as a `Linear` its weight is `[vocab, hidden]`, the shape of an output head.
        head: The output head. Where `tied`, the checkpoint has no such tensor and the embedding serves.
        max_position: The longest sequence in tokens.
        activation: Of the gate.
        attention_scale: Queries times keys are multiplied by it.
        norm_offset: Added to every norm's weight: 1 where a checkpoint stores `weight - 1`.
        embedding_scale: The embedding's rows are multiplied by it; None is 1.
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
        """The rotary embedding of the layers that see all tokens; of the first layer if none does."""
        return next((layer.rope for layer in self.layers if layer.window is None), self.layers[0].rope)

    @property
    def windowed(self) -> bool:
        """Whether a layer sees less than the longest sequence."""
        return any(layer.window is not None and layer.window < self.max_position for layer in self.layers)

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """KV cache bytes that one token takes: a key and a value per layer and key/value head."""
        return 2 * element_bytes * len(self.layers) * self.num_kv_heads * self.head_dim

    def linears(self) -> Iterator[Linear]:
        """Every weight matrix but the embedding and, where tied, the head, in the order of use."""
        for layer in self.layers:
            yield from layer.linears()
        if not self.tied:
            yield self.head

    def stored_linears(self) -> Iterator[Linear]:
        """As `linears`, but as the checkpoint stores them: joined ones once, where their first part is used."""
        last: Linear | None = None
        for linear in self.linears():
            if linear.stored != last:
                yield linear.stored
            last = linear.stored

    def norms(self) -> dict[str, int]:
        """Every norm's tensor and its length."""
        sizes: dict[str, int] = {}
        for layer in self.layers:
            heads = dict.fromkeys(filter(None, (layer.q_norm, layer.k_norm)), self.head_dim)
            wide = (layer.input_norm, layer.attention_out_norm, layer.mlp_norm, layer.mlp_out_norm)
            sizes |= dict.fromkeys(filter(None, wide), self.hidden_size) | heads
        return {**sizes, self.final_norm: self.hidden_size}

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor a checkpoint of this model must have, by name."""
        shapes: dict[str, tuple[int, ...]] = {self.embedding.weight: (self.vocab_size, self.hidden_size)}
        for linear in self.stored_linears():
            shapes[linear.weight] = (linear.out_features, linear.in_features)
            if linear.bias:
                shapes[linear.bias_name] = (linear.out_features,)
        return shapes | {name: (size,) for name, size in self.norms().items()}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that every architecture here states under the same keys.

    Attributes:
        context_length: Longest sequence the export is for.
        longest: The longest that the model and its RoPE scaling allow.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_position: int
    longest: int
    context_length: int

    @classmethod
    def read(cls, config: Config, context_length: int | None = None, *, head_dim: int | None = None) -> Shape:
        """Read the sizes.

        Args:
            config: The configuration.
            context_length: Longest sequence to export for; None takes the longest there is.
            head_dim: The architecture's default; None divides the hidden size by the heads.

        Raises:
            ExportError: One is missing, of the wrong kind, or inconsistent with another.
        """
        hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        kv_heads = config.integer("num_key_value_heads", heads)
        if heads % kv_heads:
            raise ExportError(f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads")
        max_position = config.integer("max_position_embeddings")
        longest = scaled_context(full_scaling(config.get("rope_scaling"), config.get("rope_parameters")), max_position)
        if context_length is not None and not 0 < context_length <= longest:
            raise ExportError(
                f"the model's context is {longest} tokens; it cannot be exported for {context_length}",
                hint="a smaller --context; or stretch it with --yarn FACTOR where the model's card says so",
            )
        return cls(
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=config.integer("num_hidden_layers", most=1 << 12),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=config.integer("head_dim", head_dim or max(1, hidden // heads), most=1 << 16),
            vocab=config.integer("vocab_size"),
            max_position=max_position,
            longest=longest,
            context_length=context_length or longest,
        )


def plain_rope(config: Config, shape: Shape, default_theta: float) -> Rope:
    """Read the one rotary embedding that all layers share.

    transformers 5 nests everything in `rope_parameters`; earlier versions keep `rope_theta` and `rope_scaling` at the
    top, and transformers 5 reads what an older `rope_scaling` has of either.

    Args:
        config: The configuration.
        shape: Its sizes.
        default_theta: The architecture's base.

    Raises:
        ExportError: Two places disagree, or a scaling is asked for that is not handled.
    """
    nested, scaling = (_object(config, key) for key in ("rope_parameters", "rope_scaling"))
    if scaling and known_kind(nested) != "default" and not same_scaling(scaling, nested):
        raise ExportError("config.json: `rope_scaling` and `rope_parameters` disagree")
    theta, portion = (
        one_number(
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
    dim = int(shape.head_dim * portion)
    if portion != 1:
        config.kept["partial_rotary_factor"] = portion
    if dim % 2 or not 2 <= dim <= shape.head_dim:
        raise ExportError(f"config.json: {dim} of {shape.head_dim} elements of a head are turned; RoPE needs pairs")
    return read_rope(
        theta, dim, scaling or nested, max_position=shape.max_position, context_length=shape.context_length
    )


def one_number(key: str, default: float, found: Mapping[str, Any]) -> float:
    """Return a positive number that may stand in several places, if it is the same in all of them.

    Args:
        key: Its key.
        default: What it is where no place has it.
        found: What each place has, None where it has nothing.

    Raises:
        ExportError: Two places disagree, or it is no positive number.
    """
    numbers = {place: Config({key: value}).number(key) for place, value in found.items() if value is not None}
    if len(set(numbers.values())) > 1:
        raise ExportError(f"config.json: {' and '.join(f'`{place}`' for place in numbers)} disagree")
    return next(iter(numbers.values()), default)


def _object(config: Config, key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise ExportError(f"config.json: `{key}` must be an object, not {str(value)[:40]!r}")
    return value


def sliding_layers(config: Config, layers: int, default: list[bool]) -> list[bool]:
    """Which layers see a window only: `layer_types`, or the architecture's own rule.

    Raises:
        ExportError: `layer_types` is malformed or names a kind that is not handled.
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
    config.kept["layer_types"] = types
    return [kind == "sliding_attention" for kind in types]


def no_windows(config: Config, shape: Shape, why: str) -> None:
    """Make sure that `layer_types`, where there is one, names no layer that sees a window only.

    Raises:
        ExportError: It does; `why` says what speaks against it.
    """
    if any(sliding_layers(config, shape.layers, [False] * shape.layers)):
        raise ExportError(f"config.json: `layer_types` has sliding layers, and {why}", code="unsupported_configuration")


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
        config: The configuration; it is finished here, so that no key of it is left unread.
        shape: Its sizes.
        rope: What all layers share.
        tied: The embedding is the output head too.
        qkv_bias: q, k and v have a bias.
        o_bias: o has one.
        mlp_bias: gate, up and down have one.
        qk_norm: Every query and key head is normed before RoPE.
        fused: The checkpoint stores q, k and v as one matrix, and gate and up as one.
        windows: How many tokens each layer sees; None sees all.
        eps: The architecture's default of `rms_norm_eps`.

    Raises:
        ExportError: A value is missing, of the wrong kind, or not handled.
    """
    config.require("hidden_act", "silu")
    query, shared = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def layer(index: int) -> Layer:
        prefix = f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = Linear(f"{attention}.qkv_proj", shape.hidden, query + 2 * shared, qkv_bias) if fused else None
        gate_up = Linear(f"{mlp}.gate_up_proj", shape.hidden, 2 * shape.intermediate, mlp_bias) if fused else None

        def part(name: str, out: int, bias: bool, whole: Linear | None, first: int) -> Linear:
            return Linear(name, shape.hidden, out, bias, whole, first if whole else 0)

        return Layer(
            index=index,
            input_norm=f"{prefix}.input_layernorm.weight",
            q=part(f"{attention}.q_proj", query, qkv_bias, qkv, 0),
            k=part(f"{attention}.k_proj", shared, qkv_bias, qkv, query),
            v=part(f"{attention}.v_proj", shared, qkv_bias, qkv, query + shared),
            o=Linear(f"{attention}.o_proj", query, shape.hidden, o_bias),
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
        config=config.kept,
    )
