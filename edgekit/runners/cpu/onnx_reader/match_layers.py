"""Matches the decoder layers of a graph, from the last to the first.

The counterpart of `edgekit.export.writers.onnx.ort`, which writes and draws the patterns. Matching follows each node
from its output to its inputs, up to the embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgekit.runners.cpu.model import Factors, FloatArray, LayerDescription, Matrix
from edgekit.runners.cpu.onnx_reader.match_matrices import Matrices
from edgekit.runners.cpu.onnx_reader.matcher import (
    MICROSOFT,
    Attributes,
    GraphMatcher,
    Unsupported,
    integer,
    unsupported,
)
from edgekit.runners.cpu.onnx_reader.onnx_proto import FLOAT, INT32, INT64, NodeProto, ValueInfo

__all__ = ["Layers", "Sizes", "Stack"]

_SKIP = "SkipSimplifiedLayerNormalization"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Properties that all layers of a model share."""

    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    activation: Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class Stack:
    """The layers of a model and the final norm.

    Attributes:
        entry: Name of the value that enters the first layer.
        layers: First to last.
        final_norm: Weights of the norm after the last layer.
        ropes: Cosines and sines, in the order of their first use.
        sizes: Sizes of every layer.
        eps: Epsilon of every norm.
    """

    entry: str
    layers: tuple[LayerDescription, ...]
    final_norm: FloatArray
    ropes: tuple[tuple[Factors, Factors], ...]
    sizes: Sizes
    eps: float


@dataclass(frozen=True, slots=True)
class _Mlp:
    x: str
    out_norm: FloatArray | None
    gate_up: tuple[Matrix, ...]
    down: Matrix
    activation: Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class _Attention:
    x: str
    node: NodeProto
    out_norm: FloatArray | None
    q_norm: FloatArray | None
    k_norm: FloatArray | None
    qkv: tuple[Matrix, ...]
    o: Matrix
    heads: tuple[int, int, int]
    """Query heads, KV heads and head width."""


class Layers:
    """Matches layers.

    Args:
        matcher: The matcher of the graph.
        matrices: Matches its matrices.
        hidden: Width of the residual stream.
    """

    def __init__(self, matcher: GraphMatcher, matrices: Matrices, hidden: int) -> None:
        self._matcher = matcher
        self._matrices = matrices
        self._hidden = hidden
        self._eps: float | None = None

    # normed ─ attention ─ o ─ (norm) ─ SkipNorm ─ mlp ─ (norm) ─ SkipNorm ─▶ normed of the next layer
    # residual ──────────────────────────┘    └────────────────────┘    └─▶ residual
    #
    # The input of the first layer has a plain norm: there is nothing to add.
    def read(self, normed: str) -> Stack:
        """Match the layers that lead to a value.

        Args:
            normed: The input of the head.

        Raises:
            Unsupported: The graph does not match.
            BundleError: Bytes of a weight are missing.
        """
        matcher = self._matcher
        found: list[tuple[FloatArray, _Attention, FloatArray, _Mlp]] = []
        final_norm, branch, residual = self._skip_norm(normed, None)
        while True:
            mlp = self._mlp(branch)
            mlp_norm, branch, residual = self._skip_norm(mlp.x, residual)
            attention, residual = self._attention(branch, residual, last=not found)
            producer = matcher.producer(attention.x)
            first = producer is None or producer.op_type != _SKIP
            if first:
                input_norm, entry = self._norm(attention.x, self._hidden)
                if entry != residual:
                    raise Unsupported("the first layer's norm and residual read different values")
            else:
                input_norm, branch, residual = self._skip_norm(attention.x, residual)
            found.append((input_norm, attention, mlp_norm, mlp))
            if first:
                break
        found.reverse()
        sizes = {Sizes(mlp.down.shape[1], *attention.heads, mlp.activation) for _, attention, _, mlp in found}
        if len(sizes) > 1 or self._eps is None:
            raise Unsupported("the layers of the graph differ in size")
        size = sizes.pop()
        ropes: dict[tuple[str, ...], tuple[FloatArray, FloatArray]] = {}
        layers = []
        for index, (input_norm, attention, mlp_norm, mlp) in enumerate(found):
            rope = self._rope(attention.node, index, size.head_dim, ropes)
            window, scale = integer(attention.node, "local_window_size"), attention.node.attributes["scale"]
            # Zero lets the operator choose a scale.
            if not isinstance(scale, float) or not 0 < scale < math.inf or window < -1 or window == 0:
                raise unsupported(attention.node, f"has the unsupported scale {scale} or window {window}")
            layer = LayerDescription(
                input_norm=input_norm,
                mlp_norm=mlp_norm,
                attention_out_norm=attention.out_norm,
                mlp_out_norm=mlp.out_norm,
                q_norm=attention.q_norm,
                k_norm=attention.k_norm,
                qkv=attention.qkv,
                o=attention.o,
                gate_up=mlp.gate_up,
                down=mlp.down,
                rope=rope,
                window=window,
                scale=scale,
            )
            layers.append(layer)
        return Stack(entry, tuple(layers), final_norm, tuple(ropes.values()), size, self._eps)

    def ends(self, stack: Stack, vocab: int) -> tuple[list[ValueInfo], list[ValueInfo]]:
        """Return the inputs and outputs of a graph whose layers were matched."""
        cache = ("batch", stack.sizes.kv_heads, "capacity", stack.sizes.head_dim)
        inputs = [
            ValueInfo("input_ids", INT64, ("batch", "sequence")),
            ValueInfo("seqlens_k", INT32, ("batch",)),
            ValueInfo("total_sequence_length", INT32, ()),
            ValueInfo("logits_index", INT64, ("batch", "rows", 1)),
        ]
        outputs = [ValueInfo("logits", FLOAT, ("batch", "rows", vocab))]
        for index in range(len(stack.layers)):
            inputs += [ValueInfo(f"past_key_values.{index}.{part}", FLOAT, cache) for part in ("key", "value")]
            outputs += [ValueInfo(f"present.{index}.{part}", FLOAT, cache) for part in ("key", "value")]
        return inputs, outputs

    # x ─ gate_up ─ Split ─┬─ gate ─ act ─┐
    #                      └─ up ──── Mul ┴─ down ─ (norm) ─▶
    def _mlp(self, branch: str) -> _Mlp:
        matcher = self._matcher
        out_norm, branch = self._optional_norm(branch)
        product, down = self._matrices.linear(branch)
        multiplied = matcher.match(product, "Mul", inputs=(2,))
        acted, up = multiplied.inputs
        producer = matcher.producer(acted)
        activation: Literal["silu", "gelu_tanh"]
        if producer is not None and producer.op_type == "QuickGelu":
            # x · sigmoid(alpha · x)
            gate, activation = matcher.match(acted, "QuickGelu", {"alpha": 1.0}, domain=MICROSOFT).inputs[0], "silu"
        else:
            gate, activation = matcher.match(acted, "FastGelu", {}, domain=MICROSOFT).inputs[0], "gelu_tanh"
        width = down.shape[1]
        producer = matcher.producer(gate)
        if producer is not None and producer.op_type == "Split":
            options: Attributes = {"axis": -1, "num_outputs": 2}
            parts = [matcher.match(part, "Split", options, output=at, outputs=2) for at, part in enumerate((gate, up))]
            if parts[0] is not parts[1]:
                raise unsupported(parts[1], "does not split the same value as the gate")
            x, fused = self._matrices.linear(parts[0].inputs[0])
            self._check(multiplied, down, self._hidden, width)
            self._check(multiplied, fused, 2 * width, self._hidden)
            return _Mlp(x, out_norm, (fused,), down, activation)
        (x, first), (other, second) = self._matrices.linear(gate), self._matrices.linear(up)
        if x != other:
            raise unsupported(multiplied, "multiplies a gate and an up projection of different inputs")
        self._check(multiplied, down, self._hidden, width)
        for matrix in (first, second):
            self._check(multiplied, matrix, width, self._hidden)
        return _Mlp(x, out_norm, (first, second), down, activation)

    # x ─ qkv ─┬──────── (fused: one input) ─────────┬─ GroupQueryAttention ─ (rows) ─ o ─ (norm) ─▶
    #          └─ Split ─┬─ q ─ heads ─ norm ─ joined ┤
    #                    ├─ k ─ heads ─ norm ─ joined ┤
    #                    └─ v ────────────────────────┘
    #
    # After the last layer's attention, only the rows whose logits are wanted remain.
    def _attention(self, branch: str, residual: str, *, last: bool) -> tuple[_Attention, str]:
        """Match the attention that produces a branch; return it and the residual before it."""
        matcher = self._matcher
        out_norm, branch = self._optional_norm(branch)
        attended, o = self._matrices.linear(branch)
        if last:
            attended, residual = self._rows(attended), self._rows(residual)
        options: Attributes = {
            "num_heads": int,
            "kv_num_heads": int,
            "scale": float,
            "local_window_size": int,
            "do_rotary": 1,
            "rotary_interleaved": 0,
        }
        node = matcher.match(attended, "GroupQueryAttention", options, domain=MICROSOFT, inputs=(9,), outputs=3)
        heads, kv_heads = integer(node, "num_heads"), integer(node, "kv_num_heads")
        if kv_heads < 1 or heads < 1 or heads % kv_heads or o.shape[1] % (2 * heads):
            raise unsupported(node, f"has {heads} query heads and {kv_heads} KV heads for {o.shape[1]} outputs")
        dim = o.shape[1] // heads
        self._check(node, o, self._hidden, heads * dim)
        q, k, v = node.inputs[:3]
        sizes = (heads * dim, kv_heads * dim, kv_heads * dim)
        if not k and not v:
            x, fused = self._matrices.linear(q)
            self._check(node, fused, sum(sizes), self._hidden)
            return _Attention(x, node, out_norm, None, None, (fused,), o, (heads, kv_heads, dim)), residual
        q_norm, q = self._normed_heads(q, heads, dim)
        k_norm, k = self._normed_heads(k, kv_heads, dim)
        producer = matcher.producer(q)
        if producer is not None and producer.op_type == "Split":
            parts = [
                matcher.match(part, "Split", {"axis": -1}, inputs=(2,), output=at, outputs=3)
                for at, part in enumerate((q, k, v))
            ]
            if any(part is not parts[0] for part in parts):
                raise unsupported(node, "has queries, keys and values from different splits")
            matcher.expect_ints(parts[0], parts[0].inputs[1], sizes)
            x, fused = self._matrices.linear(parts[0].inputs[0])
            self._check(node, fused, sum(sizes), self._hidden)
            matrices: tuple[Matrix, ...] = (fused,)
        else:
            read = [self._matrices.linear(part) for part in (q, k, v)]
            x, matrices = read[0][0], tuple(matrix for _, matrix in read)
            if any(other != x for other, _ in read):
                raise unsupported(node, "has queries, keys and values from different inputs")
            for matrix, size in zip(matrices, sizes, strict=True):
                self._check(node, matrix, size, self._hidden)
        return _Attention(x, node, out_norm, q_norm, k_norm, matrices, o, (heads, kv_heads, dim)), residual

    def _normed_heads(self, value: str, heads: int, dim: int) -> tuple[FloatArray | None, str]:
        """Match the norm of each head; return its weights and its input, or None and the value itself."""
        matcher = self._matcher
        producer = matcher.producer(value)
        if producer is None or producer.op_type != "Reshape":
            return None, value
        joined = matcher.match(value, "Reshape", inputs=(2,))
        matcher.expect_ints(joined, joined.inputs[1], [0, 0, -1])
        norm, before = self._norm(joined.inputs[0], dim)
        apart = matcher.match(before, "Reshape", inputs=(2,))
        matcher.expect_ints(apart, apart.inputs[1], [0, 0, heads, dim])
        return norm, apart.inputs[0]

    def _rope(
        self, node: NodeProto, layer: int, dim: int, ropes: dict[tuple[str, ...], tuple[FloatArray, FloatArray]]
    ) -> int:
        """Return the index of a layer's RoPE tables, after checking that it uses its own KV cache."""
        caches = [f"{when}.{layer}.{part}" for when in ("past_key_values", "present") for part in ("key", "value")]
        wanted = [*caches[:2], "seqlens_k", "total_sequence_length"]
        if list(node.inputs[3:7]) != wanted or list(node.outputs[1:]) != caches[2:]:
            raise unsupported(node, f"does not use the KV cache of layer {layer}")
        names = node.inputs[7:9]
        if names not in ropes:
            rows = next(iter(ropes.values()))[0].shape[0] if ropes else None
            cos = self._matcher.array(node, names[0], np.float32, (rows, dim // 2))
            ropes[names] = cos, self._matcher.array(node, names[1], np.float32, cos.shape)
        return list(ropes).index(names)

    def _rows(self, value: str) -> str:
        node = self._matcher.match(value, "GatherND", {"batch_dims": 1}, inputs=(2,))
        if node.inputs[1] != "logits_index":
            raise unsupported(node, "does not select rows by `logits_index`")
        return node.inputs[0]

    def _optional_norm(self, value: str) -> tuple[FloatArray | None, str]:
        producer = self._matcher.producer(value)
        if producer is None or producer.op_type != "SimplifiedLayerNormalization":
            return None, value
        return self._norm(value, self._hidden)

    def _norm(self, value: str, width: int) -> tuple[FloatArray, str]:
        """Match an RMSNorm; return its weights and its input."""
        options: Attributes = {"axis": -1, "epsilon": float, "stash_type": 1}
        node = self._matcher.match(value, "SimplifiedLayerNormalization", options, inputs=(2,))
        return self._weight(node, node.inputs[1], width), node.inputs[0]

    def _skip_norm(self, value: str, residual: str | None) -> tuple[FloatArray, str, str]:
        """Match the norm of a sum; return its weights and the two summands. `residual` names the sum if it is read."""
        node = self._matcher.match(value, _SKIP, {"epsilon": float}, domain=MICROSOFT, inputs=(3,), outputs=4)
        if any(node.outputs[1:3]) or residual not in {None, node.outputs[3]}:
            raise unsupported(node, "does not produce the residual stream")
        return self._weight(node, node.inputs[2], self._hidden), node.inputs[0], node.inputs[1]

    def _weight(self, node: NodeProto, name: str, width: int) -> FloatArray:
        eps = node.attributes["epsilon"]
        if not isinstance(eps, float) or not 0 <= eps < math.inf or self._eps not in {None, eps}:
            raise unsupported(node, f"has the epsilon {eps}, other norms {self._eps}")
        self._eps = eps
        weight: FloatArray = self._matcher.array(node, name, np.float32, (width,))
        return weight

    def _check(self, node: NodeProto, matrix: Matrix, out: int, width: int) -> None:
        if matrix.shape != (out, width):
            raise unsupported(node, f"has a matrix of shape {matrix.shape} instead of {(out, width)}")
