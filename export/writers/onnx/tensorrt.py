"""The base of both TensorRT dialects: inputs, residual stream, MLP and output head.

    input_ids        int64 [batch, sequence]
    position_ids     int64 [batch, sequence]
    attention_mask   fp16  [batch, 1, sequence, total]      additive: 0 where a token may attend, else -65504
    window_mask      the same for sliding-window layers; a graph has only the masks that its layers read
    logits_index     int64 [rows]                           positions of `sequence` whose logits are computed
        ▼
    logits           fp32  [batch, rows, vocab]

The network is strongly typed: matrix products take FP16. The residual stream, norms and softmax are FP32, because
residual activations of Qwen2.5 and Gemma overflow FP16. A dialect adds the KV cache, norms, RoPE and attention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from onnx import TensorProto

from edgekit.export.architectures.decoder import Decoder, Layer, Linear, Rope
from edgekit.export.writers.base import Progress, Weights
from edgekit.export.writers.limits import check_tensorrt_support
from edgekit.export.writers.onnx.graph import Graph
from edgekit.export.writers.onnx.matrices import Matrices
from edgekit.export.writers.onnx.rope import rope_tables

__all__ = ["FULL_MASK", "WINDOW_MASK", "TensorRtDialect"]

FULL_MASK, WINDOW_MASK = "attention_mask", "window_mask"

F32, INT64 = TensorProto.FLOAT, TensorProto.INT64


class TensorRtDialect(ABC):
    """Writes one model into one graph.

    Args:
        graph: The graph.
        decoder: The model.
        weights: The model's weights.
        progress: Called with the name of each tensor once it is written.
        dtype: Dtype of activations, float weights, scales and the KV cache: float16, or float32 for parity tests.

    Raises:
        ExportError: Two layers have sliding windows of different sizes.
    """

    opsets: ClassVar[Mapping[str, int]]
    total: ClassVar[str] = "total"
    """Name of the dimension of the positions that a mask hides or shows."""

    def __init__(
        self,
        graph: Graph,
        decoder: Decoder,
        weights: Weights,
        progress: Progress,
        dtype: type[np.float16 | np.float32] = np.float16,
    ) -> None:
        self._g = graph
        self._d = decoder
        self._w = weights
        self._progress = progress
        self._np = dtype
        self._type = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
        self._matrices = Matrices(graph, weights, progress, dtype)
        check_tensorrt_support(decoder)
        windows = {layer.window for layer in decoder.layers if _slides(layer, decoder)} - {None}
        self._window = next(iter(windows), None)

    def write(self) -> dict[str, str]:
        """Write inputs, layers and outputs.

        Returns:
            The dialect's metadata: `edgekit.window`, the window size of `window_mask` in tokens.
        """
        g, d = self._g, self._d
        ids = g.input("input_ids", INT64, ("batch", "sequence"))
        positions = g.input("position_ids", INT64, ("batch", "sequence"))
        masks = sorted({self._mask_of(layer) for layer in d.layers})
        for mask in masks:
            g.input(mask, self._type, ("batch", 1, "sequence", self.total))
        rows = g.input("logits_index", INT64, ("rows",))
        g.output("logits", F32, ("batch", "rows", d.vocab_size))
        self._declare_cache()
        residual, head = self._matrices.embed(ids, d)
        self._matrices.store_all(d)
        self._begin(positions, masks)
        for layer in d.layers:
            residual = self._layer(layer, residual, rows if layer is d.layers[-1] else None)
        normed = self._normed(residual, d.final_norm, "/model/norm")
        logits = self._matrices.apply(normed, head or self._matrices.head(d.head), "/lm_head")
        g.node("Cast", [logits], "/lm_head/Cast", output="logits", to=F32)
        return {} if self._window is None else {"edgekit.window": str(self._window)}

    @abstractmethod
    def _declare_cache(self) -> None:
        """Declare the inputs and outputs of the KV cache, and other inputs of the dialect."""

    @abstractmethod
    def _begin(self, positions: str, masks: list[str]) -> None:
        """Write the values that all layers share; there is at least one mask."""

    @abstractmethod
    def _norm(self, x: str, weight: str, path: str) -> str:
        """RMSNorm over the last axis, FP32 to FP32."""

    @abstractmethod
    def _attention(self, layer: Layer, x: str, path: str) -> str:
        """Attention from the normalized input to the input of `o_proj`, `[batch, sequence, heads · head_dim]`."""

    # residual ─┬─ norm ─ attention ─ o_proj ─ Cast ─ (norm) ─ Add ─┬─ norm ─ mlp ─ Cast ─ (norm) ─ Add ─▶ residual
    #           └───────────────────────────────────────────────────┘└──────────────────────────────┘
    # After its attention, the last layer drops all positions whose logits are not requested.
    def _layer(self, layer: Layer, residual: str, rows: str | None) -> str:
        g, path = self._g, f"/model/layers.{layer.index}"
        normed = self._normed(residual, layer.input_norm, f"{path}/input_layernorm")
        attended = self._attention(layer, normed, f"{path}/attn")
        if rows is not None:
            attended = g.node("Gather", [attended, rows], f"{path}/attn/rows/Gather", axis=1)
            residual = g.node("Gather", [residual, rows], f"{path}/rows/Gather", axis=1)
        branch = self._matrices.linear(attended, layer.o, f"{path}/attn/o_proj")
        residual = self._add(residual, branch, layer.attention_out_norm, f"{path}/attn")
        normed = self._normed(residual, layer.mlp_norm, f"{path}/mlp_layernorm")
        return self._add(residual, self._mlp(layer, normed, f"{path}/mlp"), layer.mlp_out_norm, f"{path}/mlp")

    def _add(self, residual: str, branch: str, norm: str | None, path: str) -> str:
        branch = self._g.node("Cast", [branch], f"{path}/residual/Cast", to=F32)
        if norm is not None:
            branch = self._norm(branch, norm, f"{path}/out_layernorm")
        return self._g.node("Add", [residual, branch], f"{path}/residual/Add")

    # x ─ MatMul ─ Reshape ─ (Cast fp32 ─ norm ─ Cast fp16) ─ Transpose ─▶ [batch, heads, sequence, head_dim]
    def _heads(self, x: str, linear: Linear, norm: str | None, path: str, output: str | None = None) -> str:
        g, size = self._g, self._d.head_dim
        heads = linear.out_features // size
        y = self._matrices.linear(x, linear, path)
        y = g.node("Reshape", [y, self._int64(f"shape.{heads}_heads", [0, 0, heads, size])], f"{path}/heads/Reshape")
        if norm is not None:
            y = self._normed(g.node("Cast", [y], f"{path}/heads/Cast", to=F32), norm, f"{path}/norm")
        return g.node("Transpose", [y], f"{path}/heads/Transpose", output=output, perm=[0, 2, 1, 3])

    # [batch, heads, sequence, head_dim] ─ Transpose ─ Reshape ─▶ [batch, sequence, heads · head_dim]
    def _join(self, mixed: str, path: str) -> str:
        mixed = self._g.node("Transpose", [mixed], f"{path}/out/Transpose", perm=[0, 2, 1, 3])
        return self._g.node("Reshape", [mixed, self._int64("shape.joined", [0, 0, -1])], f"{path}/joined/Reshape")

    # x ─┬─ gate_proj ─ act ─ Mul ─ down_proj ─▶          act: x · sigmoid(x), or GELU by its tanh approximation
    #    └─ up_proj ───────────┘
    def _mlp(self, layer: Layer, x: str, path: str) -> str:
        g = self._g
        gate = self._matrices.linear(x, layer.gate, f"{path}/gate_proj")
        up = self._matrices.linear(x, layer.up, f"{path}/up_proj")
        if self._d.activation == "silu":
            gate = g.node("Mul", [gate, g.node("Sigmoid", [gate], f"{path}/act/Sigmoid")], f"{path}/act/Mul")
        else:
            gate = g.node("Gelu", [gate], f"{path}/act/Gelu", approximate="tanh")
        return self._matrices.linear(g.node("Mul", [gate, up], f"{path}/Mul"), layer.down, f"{path}/down_proj")

    def _normed(self, x: str, weight: str, path: str) -> str:
        """RMSNorm, cast from FP32 to the dtype of matrix products."""
        return self._g.node("Cast", [self._norm(x, weight, path)], f"{path}/Cast", to=self._type)

    def _norm_weight(self, name: str) -> str:
        """Write a norm's weight in FP32 and return its name."""
        weight = self._g.constant(name, self._w.vector(name).astype(np.float32) + np.float32(self._d.norm_offset))
        self._progress(name)
        return weight

    def _tables(self) -> dict[Rope, tuple[str, str]]:
        """Write the tables of each distinct RoPE, `[positions, dim / 2]`, and return their names."""
        tables: dict[Rope, tuple[str, str]] = {}
        for layer in self._d.layers:
            if layer.rope not in tables:
                label = f".{len(tables)}" if tables else ""
                cos, sin = rope_tables(layer.rope, self._d.max_position)
                tables[layer.rope] = (
                    self._g.constant(f"cos_cache{label}", self._matrices.cast(cos)),
                    self._g.constant(f"sin_cache{label}", self._matrices.cast(sin)),
                )
        return tables

    def _mask_of(self, layer: Layer) -> str:
        return WINDOW_MASK if _slides(layer, self._d) else FULL_MASK

    def _scale(self) -> str:
        """The scale of the queries, applied before the product with the keys, which could overflow FP16."""
        return self._g.constant("attn.scale", np.array(self._d.attention_scale, self._np))

    def _int64(self, name: str, values: list[int]) -> str:
        return self._g.constant(name, np.array(values, np.int64))


def _slides(layer: Layer, decoder: Decoder) -> bool:
    """Whether a layer's window is shorter than the maximum sequence length."""
    return layer.window is not None and layer.window < decoder.max_position
