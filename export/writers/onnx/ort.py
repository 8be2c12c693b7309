"""The `onnxruntime` dialect: onnxruntime's own fused operators, for its CPU provider (1.23 and later).

    input_ids               int64 [batch, sequence]
    seqlens_k               int32 [batch]                  tokens in the cache after this step, minus one
    total_sequence_length   int32 []                       the largest of them, plus one
    logits_index            int64 [batch, rows, 1]         positions of `sequence` whose logits are wanted
    past_key_values.N.key, .value   fp32 [batch, kv_heads, capacity, head_dim]
        ▼
    logits                  fp32  [batch, rows, vocab]
    present.N.key, .value   fp32 [batch, kv_heads, capacity, head_dim]   bound to the same buffers as past

Activations and the cache are FP32, which is what this provider computes in.

Source of the operators: onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Decoder, Layer, Rope
from edgekit.export.writers.base import Progress, Weights
from edgekit.export.writers.onnx.graph import Graph
from edgekit.export.writers.onnx.ort_matrices import Matrices
from edgekit.export.writers.onnx.whole_heads import WholeHeads, whole_tables

__all__ = ["OPSETS", "OnnxRuntime"]

_MICROSOFT = "com.microsoft"
OPSETS = {"": 20, _MICROSOFT: 1}

_F32, _I32, _I64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


def _window(layer: Layer, decoder: Decoder) -> int:
    """The operator's `local_window_size`: -1 where a token sees all before it."""
    return -1 if layer.window is None or layer.window >= decoder.max_position else layer.window


def _positions(decoder: Decoder) -> int:
    """Positions of RoPE's tables: one more than the context, where a runner may put a token of padding."""
    return decoder.max_position + 1


class OnnxRuntime:
    """Writes one model into one graph.

    Args:
        graph: Where to.
        decoder: The model.
        weights: Its numbers.
        progress: Called with the name of each tensor once it is written.
        accuracy_level: Of `MatMulNBits`: 4 rounds activations to 8 bits per block, which is several times faster;
            1 computes in FP32.
    """

    def __init__(
        self, graph: Graph, decoder: Decoder, weights: Weights, progress: Progress, accuracy_level: int = 4
    ) -> None:
        self._g = graph
        self._d = decoder
        self._w = WholeHeads(weights, decoder)
        self._progress = progress
        self._matrices = Matrices(graph, self._w, progress, accuracy_level)
        self._tables: dict[Rope, tuple[str, str]] = {}

    def write(self) -> dict[str, str]:
        """Write inputs, layers and outputs.

        Returns:
            Metadata: the positions that RoPE's tables have, and the onnxruntime that the graph needs. A window of n
            tokens was one of n + 1 before 1.24 (measured: 1.23.2 against 1.24.4); see `lookup_needs` too.

        Raises:
            ExportError: The heads are of a size, or a tensor on a grid, that onnxruntime does not take.
        """
        g, d = self._g, self._d
        if d.head_dim % 16:
            raise ExportError(
                f"onnxruntime turns heads of a multiple of 16 elements; this model's have {d.head_dim}",
                hint="export for another target",
                code="unsupported_configuration",
            )
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
        return metadata | self._matrices.needs

    # normed ─ attention ─ o_proj ─ (norm) ─ SkipNorm ─ mlp ─ (norm) ─ SkipNorm ─▶ normed of the next layer
    # residual ──────────────────────────────┘    └────────────────────┘    └─▶ residual
    #
    # A SkipNorm adds its two inputs and gives the sum and its norm. The last layer drops, after its attention,
    # every position whose logits nobody wants.
    def _layer(self, layer: Layer, normed: str, residual: str, following: str, rows: str | None) -> tuple[str, str]:
        g, path = self._g, f"/model/layers.{layer.index}"
        attended = self._attention(layer, normed, f"{path}/attn")
        if rows is not None:
            attended = g.node("GatherND", [attended, rows], f"{path}/attn/rows/GatherND", batch_dims=1)
            residual = g.node("GatherND", [residual, rows], f"{path}/rows/GatherND", batch_dims=1)
        branch = self._matrices.linears(attended, [layer.o], f"{path}/attn/o_proj")[0]
        if layer.attention_out_norm is not None:
            branch = self._norm(branch, layer.attention_out_norm, f"{path}/post_attention_layernorm")
        place = "post_attention_layernorm" if layer.attention_out_norm is None else "pre_feedforward_layernorm"
        normed, residual = self._skip_norm(branch, residual, layer.mlp_norm, f"{path}/{place}")
        branch = self._mlp(layer, normed, f"{path}/mlp")
        if layer.mlp_out_norm is not None:
            branch = self._norm(branch, layer.mlp_out_norm, f"{path}/post_feedforward_layernorm")
        place = "/model/norm" if rows is not None else f"/model/layers.{layer.index + 1}/input_layernorm"
        return self._skip_norm(branch, residual, following, place)

    # x ─ qkv_proj ─┬────────── (joined: one input) ──────────┬─ GroupQueryAttention ─▶
    #               └─ Split ─┬─ q ─ heads ─ norm ─ joined ───┤
    #                         ├─ k ─ heads ─ norm ─ joined ───┤
    #                         └─ v ───────────────────────────┘
    #
    # The operator turns q and k itself, appends k and v to the cache, and looks back over `local_window_size` tokens.
    def _attention(self, layer: Layer, x: str, path: str) -> str:
        g, d = self._g, self._d
        parts = self._matrices.linears(x, [layer.q, layer.k, layer.v], path, joined="qkv_proj")
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
            place, apart = f"{path}/{name}_norm", self._int64(f"shape.{heads}_heads", [0, 0, heads, d.head_dim])
            split = g.node("Reshape", [part, apart], f"{place}/heads/Reshape")
            together = self._int64("shape.joined_heads", [0, 0, -1])
            normed.append(g.node("Reshape", [self._norm(split, weight, place), together], f"{place}/joined/Reshape"))
        return normed

    def _rope_tables(self, rope: Rope) -> tuple[str, str]:
        """Cosines and sines; layers that turn alike share them."""
        if rope not in self._tables:
            suffix = f".{len(self._tables)}" if self._tables else ""
            cos, sin = whole_tables(rope, self._d.head_dim, _positions(self._d))
            self._tables[rope] = (
                self._g.constant(f"cos_cache{suffix}", cos),
                self._g.constant(f"sin_cache{suffix}", sin),
            )
        return self._tables[rope]

    # x ─ gate_up_proj ─ Split ─┬─ gate ─ act ─┐
    #                           └─ up ──── Mul ┴─ down_proj ─▶
    #
    # QuickGelu is x · sigmoid(alpha · x): with alpha 1 it is SiLU in one pass. FastGelu is GELU by its tanh formula.
    def _mlp(self, layer: Layer, x: str, path: str) -> str:
        g = self._g
        parts = self._matrices.linears(x, [layer.gate, layer.up], path, joined="gate_up_proj")
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
        """An RMSNorm over the last axis."""
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
