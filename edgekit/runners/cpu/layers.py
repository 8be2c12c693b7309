"""Decoder layers out of a graph's nodes, from the last to the first.

The counterpart of `edgekit.export.writers.onnx.ort`, which draws the patterns: each node is followed from the value
that it makes to those that it reads, up to the token table. It knows no file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgekit.runners.cpu.matrices import Matrices
from edgekit.runners.cpu.messages import Node
from edgekit.runners.cpu.model import FloatArray, LayerDescription, Matrix
from edgekit.runners.cpu.wiring import MICROSOFT, Attributes, Unsupported, Wiring, integer, refused

__all__ = ["Layers", "Sizes", "Stack"]

_SKIP = "SkipSimplifiedLayerNormalization"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is the same in all layers of a model."""

    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    activation: Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class Stack:
    """The layers of a model, and what is around them.

    Attributes:
        entry: The value that enters the first layer.
        layers: First to last.
        final_norm: After the last.
        ropes: Cosines and sines, in the order in which layers use them first.
        sizes: Of every layer.
        eps: Of every norm.
    """

    entry: str
    layers: tuple[LayerDescription, ...]
    final_norm: FloatArray
    ropes: tuple[tuple[FloatArray, FloatArray], ...]
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
    node: Node
    out_norm: FloatArray | None
    q_norm: FloatArray | None
    k_norm: FloatArray | None
    qkv: tuple[Matrix, ...]
    o: Matrix
    heads: tuple[int, int, int]
    """Of queries, of keys; and their width."""


class Layers:
    """Reads layers.

    Args:
        wiring: Of the graph.
        matrices: Of the same.
        hidden: Width of the residual stream.
    """

    def __init__(self, wiring: Wiring, matrices: Matrices, hidden: int) -> None:
        self._w = wiring
        self._m = matrices
        self._hidden = hidden
        self._eps: float | None = None

    # normed ─ attention ─ o ─ (norm) ─ SkipNorm ─ mlp ─ (norm) ─ SkipNorm ─▶ normed of the next layer
    # residual ──────────────────────────┘    └────────────────────┘    └─▶ residual
    #
    # What enters the first layer is normed by itself: there is nothing to add to it.
    def read(self, normed: str) -> Stack:
        """Read the layers that lead to a value.

        Args:
            normed: What the head reads.

        Raises:
            Unsupported: They are no such layers.
            BundleError: Bytes of a weight are not there.
        """
        w = self._w
        found: list[tuple[FloatArray, _Attention, FloatArray, _Mlp]] = []
        final_norm, branch, residual = self._skip_norm(normed, None)
        while True:
            mlp = self._mlp(branch)
            mlp_norm, branch, residual = self._skip_norm(mlp.x, residual)
            attention, residual = self._attention(branch, residual, last=not found)
            maker = w.maker(attention.x)
            first = maker is None or maker.op_type != _SKIP
            if first:
                input_norm, entry = self._norm(attention.x, self._hidden)
                if entry != residual:
                    raise Unsupported("the first layer norms another value than the one that it adds to")
            else:
                input_norm, branch, residual = self._skip_norm(attention.x, residual)
            found.append((input_norm, attention, mlp_norm, mlp))
            if first:
                break
        found.reverse()
        sizes = {Sizes(mlp.down.shape[1], *attention.heads, mlp.activation) for _, attention, _, mlp in found}
        if len(sizes) > 1 or self._eps is None:
            raise Unsupported("the layers of the graph are of several sizes")
        size = sizes.pop()
        ropes: dict[tuple[str, ...], tuple[FloatArray, FloatArray]] = {}
        layers = []
        for index, (input_norm, attention, mlp_norm, mlp) in enumerate(found):
            rope = self._rope(attention.node, index, size.head_dim, ropes)
            window, scale = integer(attention.node, "local_window_size"), attention.node.attributes["scale"]
            # Zero stands for a scale that the operator chooses.
            if not isinstance(scale, float) or not 0 < scale < math.inf or window < -1 or window == 0:
                raise refused(attention.node, f"has the scale {scale} and the window {window}")
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

    # x ─ gate_up ─ Split ─┬─ gate ─ act ─┐
    #                      └─ up ──── Mul ┴─ down ─ (norm) ─▶
    def _mlp(self, branch: str) -> _Mlp:
        w = self._w
        out_norm, branch = self._optional_norm(branch)
        product, down = self._m.linear(branch)
        multiplied = w.take(product, "Mul", inputs=(2,))
        acted, up = multiplied.inputs
        maker = w.maker(acted)
        activation: Literal["silu", "gelu_tanh"]
        if maker is not None and maker.op_type == "QuickGelu":
            # x · sigmoid(alpha · x)
            gate, activation = w.take(acted, "QuickGelu", {"alpha": 1.0}, domain=MICROSOFT).inputs[0], "silu"
        else:
            gate, activation = w.take(acted, "FastGelu", {}, domain=MICROSOFT).inputs[0], "gelu_tanh"
        width = down.shape[1]
        maker = w.maker(gate)
        if maker is not None and maker.op_type == "Split":
            options: Attributes = {"axis": -1, "num_outputs": 2}
            parts = [w.take(part, "Split", options, output=at, outputs=2) for at, part in enumerate((gate, up))]
            if parts[0] is not parts[1]:
                raise refused(parts[1], "splits another value than the gate's")
            x, whole = self._m.linear(parts[0].inputs[0])
            self._check(multiplied, down, self._hidden, width)
            self._check(multiplied, whole, 2 * width, self._hidden)
            return _Mlp(x, out_norm, (whole,), down, activation)
        (x, first), (other, second) = self._m.linear(gate), self._m.linear(up)
        if x != other:
            raise refused(multiplied, "joins a gate and a branch of different inputs")
        self._check(multiplied, down, self._hidden, width)
        for matrix in (first, second):
            self._check(multiplied, matrix, width, self._hidden)
        return _Mlp(x, out_norm, (first, second), down, activation)

    # x ─ qkv ─┬──────── (joined: one input) ────────┬─ GroupQueryAttention ─ (rows) ─ o ─ (norm) ─▶
    #          └─ Split ─┬─ q ─ heads ─ norm ─ joined ┤
    #                    ├─ k ─ heads ─ norm ─ joined ┤
    #                    └─ v ────────────────────────┘
    #
    # After the last layer's attention only the wanted rows go on.
    def _attention(self, branch: str, residual: str, *, last: bool) -> tuple[_Attention, str]:
        """The attention that gives a branch, and the residual before it."""
        w = self._w
        out_norm, branch = self._optional_norm(branch)
        attended, o = self._m.linear(branch)
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
        node = w.take(attended, "GroupQueryAttention", options, domain=MICROSOFT, inputs=(9,), outputs=3)
        heads, kv_heads = integer(node, "num_heads"), integer(node, "kv_num_heads")
        if kv_heads < 1 or heads < 1 or heads % kv_heads or o.shape[1] % (2 * heads):
            raise refused(node, f"has {heads} heads of {kv_heads}, for {o.shape[1]} outputs")
        dim = o.shape[1] // heads
        self._check(node, o, self._hidden, heads * dim)
        q, k, v = node.inputs[:3]
        sizes = (heads * dim, kv_heads * dim, kv_heads * dim)
        if not k and not v:
            x, whole = self._m.linear(q)
            self._check(node, whole, sum(sizes), self._hidden)
            return _Attention(x, node, out_norm, None, None, (whole,), o, (heads, kv_heads, dim)), residual
        q_norm, q = self._normed_heads(q, heads, dim)
        k_norm, k = self._normed_heads(k, kv_heads, dim)
        maker = w.maker(q)
        if maker is not None and maker.op_type == "Split":
            parts = [
                w.take(part, "Split", {"axis": -1}, inputs=(2,), output=at, outputs=3)
                for at, part in enumerate((q, k, v))
            ]
            if any(part is not parts[0] for part in parts):
                raise refused(node, "has queries, keys and values of different splits")
            w.expect_ints(parts[0], parts[0].inputs[1], sizes)
            x, whole = self._m.linear(parts[0].inputs[0])
            self._check(node, whole, sum(sizes), self._hidden)
            matrices: tuple[Matrix, ...] = (whole,)
        else:
            read = [self._m.linear(part) for part in (q, k, v)]
            x, matrices = read[0][0], tuple(matrix for _, matrix in read)
            if any(other != x for other, _ in read):
                raise refused(node, "has queries, keys and values of different inputs")
            for matrix, size in zip(matrices, sizes, strict=True):
                self._check(node, matrix, size, self._hidden)
        return _Attention(x, node, out_norm, q_norm, k_norm, matrices, o, (heads, kv_heads, dim)), residual

    def _normed_heads(self, value: str, heads: int, dim: int) -> tuple[FloatArray | None, str]:
        """The norm of each head, and the value before it; None and the value itself where there is none."""
        w = self._w
        maker = w.maker(value)
        if maker is None or maker.op_type != "Reshape":
            return None, value
        joined = w.take(value, "Reshape", inputs=(2,))
        w.expect_ints(joined, joined.inputs[1], [0, 0, -1])
        norm, before = self._norm(joined.inputs[0], dim)
        apart = w.take(before, "Reshape", inputs=(2,))
        w.expect_ints(apart, apart.inputs[1], [0, 0, heads, dim])
        return norm, apart.inputs[0]

    def _rope(
        self, node: Node, layer: int, dim: int, ropes: dict[tuple[str, ...], tuple[FloatArray, FloatArray]]
    ) -> int:
        """Which tables a layer turns by; on the way, that its cache is its own."""
        caches = [f"{when}.{layer}.{part}" for when in ("past_key_values", "present") for part in ("key", "value")]
        wanted = [*caches[:2], "seqlens_k", "total_sequence_length"]
        if list(node.inputs[3:7]) != wanted or list(node.outputs[1:]) != caches[2:]:
            raise refused(node, f"has another cache than layer {layer}'s")
        names = node.inputs[7:9]
        if names not in ropes:
            rows = next(iter(ropes.values()))[0].shape[0] if ropes else None
            cos = self._w.array(node, names[0], np.float32, (rows, dim // 2))
            ropes[names] = cos, self._w.array(node, names[1], np.float32, cos.shape)
        return list(ropes).index(names)

    def _rows(self, value: str) -> str:
        node = self._w.take(value, "GatherND", {"batch_dims": 1}, inputs=(2,))
        if node.inputs[1] != "logits_index":
            raise refused(node, "drops other rows than those that nobody wants")
        return node.inputs[0]

    def _optional_norm(self, value: str) -> tuple[FloatArray | None, str]:
        maker = self._w.maker(value)
        if maker is None or maker.op_type != "SimplifiedLayerNormalization":
            return None, value
        return self._norm(value, self._hidden)

    def _norm(self, value: str, width: int) -> tuple[FloatArray, str]:
        """The weight of an RMSNorm, and what it norms."""
        options: Attributes = {"axis": -1, "epsilon": float, "stash_type": 1}
        node = self._w.take(value, "SimplifiedLayerNormalization", options, inputs=(2,))
        return self._weight(node, node.inputs[1], width), node.inputs[0]

    def _skip_norm(self, value: str, residual: str | None) -> tuple[FloatArray, str, str]:
        """The weight of a norm of a sum, and the sum's two parts; `residual` is the sum, where somebody reads it."""
        node = self._w.take(value, _SKIP, {"epsilon": float}, domain=MICROSOFT, inputs=(3,), outputs=4)
        if any(node.outputs[1:3]) or residual not in {None, node.outputs[3]}:
            raise refused(node, "does not add what goes on")
        return self._weight(node, node.inputs[2], self._hidden), node.inputs[0], node.inputs[1]

    def _weight(self, node: Node, name: str, width: int) -> FloatArray:
        eps = node.attributes["epsilon"]
        if not isinstance(eps, float) or not 0 <= eps < math.inf or self._eps not in {None, eps}:
            raise refused(node, f"has an epsilon of {eps}, the others {self._eps}")
        self._eps = eps
        weight: FloatArray = self._w.array(node, name, np.float32, (width,))
        return weight

    def _check(self, node: Node, matrix: Matrix, out: int, width: int) -> None:
        if matrix.shape != (out, width):
            raise refused(node, f"has a matrix of {matrix.shape} where one of {(out, width)} should be")
