"""The `onnxruntime` dialect: onnxruntime's own fused operators, for its CPU provider (1.23 and later).

    input_ids               int64 [batch, sequence]
    seqlens_k               int32 [batch]                  tokens in the cache after this step, minus one
    total_sequence_length   int32 []                       the largest of them, plus one
    logits_index            int64 [batch, rows, 1]         positions of `sequence` whose logits are computed
    past_key_values.N.key, .value   fp32 [batch, kv_heads, capacity, head_dim]
        ▼
    logits                  fp32  [batch, rows, vocab]
    present.N.key, .value   fp32 [batch, kv_heads, capacity, head_dim]   bound to the same buffers as past

Activations and the cache are FP32, in which this provider computes.

Source of the operators: onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edgekit.export.architectures.decoder import Decoder, Layer, Rope
from edgekit.export.writers.base import Progress, Weights
from edgekit.export.writers.limits import check_onnxruntime_support
from edgekit.export.writers.onnx.graph import Graph
from edgekit.export.writers.onnx.ort_matrices import Matrices
from edgekit.export.writers.onnx.partial_rotary import FullRotaryWeights, full_rotary_tables

__all__ = ["OPSETS", "OnnxRuntime"]

_MICROSOFT = "com.microsoft"
OPSETS = {"": 20, _MICROSOFT: 1}

_F32, _I32, _I64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


def _window(layer: Layer, decoder: Decoder) -> int:
    """The operator's `local_window_size`: -1 for full attention."""
    return -1 if layer.window is None or layer.window >= decoder.max_position else layer.window


def _positions(decoder: Decoder) -> int:
    """Number of positions in the RoPE tables: the context length, and one for the runner's padding tokens."""
    return decoder.max_position + 1


class OnnxRuntime:
    """Writes one model into one graph.

    Args:
        graph: The graph.
        decoder: The model.
        weights: The model's weights.
        progress: Called with the name of each tensor once it is written.
        accuracy_level: Attribute of `MatMulNBits`: 4 rounds activations to 8 bits per block, which is several times
            faster; 1 computes in FP32.
    """

    def __init__(
        self, graph: Graph, decoder: Decoder, weights: Weights, progress: Progress, accuracy_level: int = 4
    ) -> None:
        self._g = graph
        self._d = decoder
        self._w = FullRotaryWeights(weights, decoder)
        self._progress = progress
        self._matrices = Matrices(graph, self._w, progress, accuracy_level)
        self._tables: dict[Rope, tuple[str, str]] = {}

    def write(self) -> dict[str, str]:
        """Write inputs, layers and outputs.

        Returns:
            Metadata: the number of positions in the RoPE tables, and the onnxruntime version that the graph needs.
            Before 1.24, a window of n tokens was computed as n + 1 (measured: 1.23.2 against 1.24.4); see also
            `lookup_needs`.

        Raises:
            ExportError: onnxruntime does not support the head size or a tensor's grid.
        """
        g, d = self._g, self._d
        check_onnxruntime_support(d)
        ids = g.input("input_ids", _I64, ("batch", "sequence"))
        g.input("seqlens_k", _I32, ("batch",))
        g.input("total_sequence_length", _I32, ())
        rows = g.input("logits_index", _I64, ("batch", "rows", 1))
        g.output("logits", _F32, ("batch", "rows", d.vocab_size))
        cache = ("batch", d.num_kv_heads, "capacity", d.head_dim)
        for layer in d.layers:
            for part in ("key", "value"):
                g.input(f"past_key_values.{layer.index}.{part}", _F32, cache)
                g.output(f"present.{layer.index}.{part}", _F32, cache)
        residual, head = self._matrices.embed(d, ids)
        if d.embedding_scale is not None:
            scale = g.constant("embedding_scale", np.array(d.embedding_scale, np.float32))
            residual = g.node("Mul", [residual, scale], "/model/embed_tokens/Mul")
        normed = self._norm(residual, d.layers[0].input_norm, "/model/layers.0/input_layernorm")
        for layer in d.layers:
            last = layer is d.layers[-1]
            following = d.final_norm if last else d.layers[layer.index + 1].input_norm
            normed, residual = self._layer(layer, normed, residual, following, rows if last else None)
        self._matrices.apply(normed, head or self._matrices.head(d.head), "/lm_head", output="logits")
        metadata = {"edgekit.positions": str(_positions(d))}
        if any(_window(layer, d) > 0 for layer in d.layers):
            metadata["edgekit.onnxruntime"] = "1.24"
        return metadata | self._matrices.metadata

    # normed ─ attention ─ o_proj ─ (norm) ─ SkipNorm ─ mlp ─ (norm) ─ SkipNorm ─▶ normed of the next layer
    # residual ──────────────────────────────┘    └────────────────────┘    └─▶ residual
    #
    # A SkipNorm adds its two inputs and returns the sum and its norm. After its attention, the last layer drops all
    # positions whose logits are not requested.
    def _layer(self, layer: Layer, normed: str, residual: str, following: str, rows: str | None) -> tuple[str, str]:
        g, path = self._g, f"/model/layers.{layer.index}"
        attended = self._attention(layer, normed, f"{path}/attn")
        if rows is not None:
            attended = g.node("GatherND", [attended, rows], f"{path}/attn/rows/GatherND", batch_dims=1)
            residual = g.node("GatherND", [residual, rows], f"{path}/rows/GatherND", batch_dims=1)
        branch = self._matrices.linears(attended, [layer.o], f"{path}/attn/o_proj")[0]
        if layer.attention_out_norm is not None:
            branch = self._norm(branch, layer.attention_out_norm, f"{path}/post_attention_layernorm")
        name = "post_attention_layernorm" if layer.attention_out_norm is None else "pre_feedforward_layernorm"
        normed, residual = self._skip_norm(branch, residual, layer.mlp_norm, f"{path}/{name}")
        branch = self._mlp(layer, normed, f"{path}/mlp")
        if layer.mlp_out_norm is not None:
            branch = self._norm(branch, layer.mlp_out_norm, f"{path}/post_feedforward_layernorm")
        norm_path = "/model/norm" if rows is not None else f"/model/layers.{layer.index + 1}/input_layernorm"
        return self._skip_norm(branch, residual, following, norm_path)

    # x ─ qkv_proj ─┬─────────── (fused: one input) ──────────┬─ GroupQueryAttention ─▶
    #               └─ Split ─┬─ q ─ heads ─ norm ─ joined ───┤
    #                         ├─ k ─ heads ─ norm ─ joined ───┤
    #                         └─ v ───────────────────────────┘
    #
    # The operator applies RoPE to q and k, appends k and v to the cache, and attends to `local_window_size` tokens.
    def _attention(self, layer: Layer, x: str, path: str) -> str:
        g, d = self._g, self._d
        parts = self._matrices.linears(x, [layer.q, layer.k, layer.v], path, fused_name="qkv_proj")
        if layer.q_norm is not None or layer.k_norm is not None:
            parts = self._normed_heads(layer, parts, path)
        past = [f"past_key_values.{layer.index}.{part}" for part in ("key", "value")]
        present = [f"present.{layer.index}.{part}" for part in ("key", "value")]
        inputs = [*(parts if len(parts) == 3 else (*parts, "", "")), *past]
        inputs += ["seqlens_k", "total_sequence_length", *self._rope_tables(layer.rope)]
        return g.nodes(
            "GroupQueryAttention",
            inputs,
            f"{path}/GroupQueryAttention",
            [f"{path}/GroupQueryAttention/output_0", *present],
            domain=_MICROSOFT,
            num_heads=d.num_heads,
            kv_num_heads=d.num_kv_heads,
            scale=d.attention_scale,
            local_window_size=_window(layer, d),
            do_rotary=1,
            rotary_interleaved=0,
        )[0]

    def _normed_heads(self, layer: Layer, parts: list[str], path: str) -> list[str]:
        g, d, names = self._g, self._d, ("q", "k", "v")
        if len(parts) == 1:
            sizes = [linear.out_features for linear in (layer.q, layer.k, layer.v)]
            split = self._int64("sizes.qkv", sizes)
            parts = list(g.nodes("Split", [*parts, split], f"{path}/Split", [f"{path}/{n}" for n in names], axis=-1))
        normed = []
        for part, weight, heads, name in zip(
            parts, (layer.q_norm, layer.k_norm, None), (d.num_heads, d.num_kv_heads, 0), names, strict=True
        ):
            if weight is None:
                normed.append(part)
                continue
            norm_path = f"{path}/{name}_norm"
            split_shape = self._int64(f"shape.{heads}_heads", [0, 0, heads, d.head_dim])
            split = g.node("Reshape", [part, split_shape], f"{norm_path}/heads/Reshape")
            joined_shape = self._int64("shape.joined_heads", [0, 0, -1])
            values = self._norm(split, weight, norm_path)
            normed.append(g.node("Reshape", [values, joined_shape], f"{norm_path}/joined/Reshape"))
        return normed

    def _rope_tables(self, rope: Rope) -> tuple[str, str]:
        """Write cosines and sines; layers with the same RoPE share them."""
        if rope not in self._tables:
            suffix = f".{len(self._tables)}" if self._tables else ""
            cos, sin = full_rotary_tables(rope, self._d.head_dim, _positions(self._d))
            self._tables[rope] = (
                self._g.constant(f"cos_cache{suffix}", cos),
                self._g.constant(f"sin_cache{suffix}", sin),
            )
        return self._tables[rope]

    # x ─ gate_up_proj ─ Split ─┬─ gate ─ act ─┐
    #                           └─ up ──── Mul ┴─ down_proj ─▶
    #
    # QuickGelu is x · sigmoid(alpha · x): with alpha 1 it is SiLU. FastGelu is the tanh approximation of GELU.
    def _mlp(self, layer: Layer, x: str, path: str) -> str:
        g = self._g
        parts = self._matrices.linears(x, [layer.gate, layer.up], path, fused_name="gate_up_proj")
        if len(parts) == 1:
            names = [f"{path}/gate", f"{path}/up"]
            parts = list(g.nodes("Split", parts, f"{path}/Split", names, axis=-1, num_outputs=2))
        gate, up = parts
        if self._d.activation == "silu":
            gate = g.node("QuickGelu", [gate], f"{path}/act_fn/QuickGelu", domain=_MICROSOFT, alpha=1.0)
        else:
            gate = g.node("FastGelu", [gate], f"{path}/act_fn/FastGelu", domain=_MICROSOFT)
        return self._matrices.linears(g.node("Mul", [gate, up], f"{path}/Mul"), [layer.down], f"{path}/down_proj")[0]

    def _norm(self, x: str, weight: str, path: str) -> str:
        """RMSNorm over the last axis."""
        return self._g.node(
            "SimplifiedLayerNormalization",
            [x, self._norm_weight(weight)],
            f"{path}/LayerNorm",
            axis=-1,
            epsilon=self._d.rms_norm_eps,
            stash_type=1,
        )

    def _skip_norm(self, branch: str, residual: str, weight: str, path: str) -> tuple[str, str]:
        names = [f"{path}/output_0", f"{path}/residual"]
        self._g.nodes(
            "SkipSimplifiedLayerNormalization",
            [branch, residual, self._norm_weight(weight)],
            f"{path}/SkipLayerNorm",
            [names[0], "", "", names[1]],
            domain=_MICROSOFT,
            epsilon=self._d.rms_norm_eps,
        )
        return names[0], names[1]

    def _int64(self, name: str, values: list[int]) -> str:
        return self._g.constant(name, np.array(values, np.int64))

    def _norm_weight(self, name: str) -> str:
        weight = self._g.constant(name, self._w.vector(name) + np.float32(self._d.norm_offset))
        self._progress(name)
        return weight
