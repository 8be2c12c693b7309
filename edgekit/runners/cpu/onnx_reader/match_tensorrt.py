"""Matches the decoder layers of a graph in one of TensorRT's dialects, from the last to the first.

The counterpart of `edgekit.export.writers.onnx.tensorrt`, which writes and draws the patterns. `match_portable` and
`match_native` match what differs: norms, RoPE, cache and attention.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from edgekit.errors import BundleError
from edgekit.runners.cpu.model import Factors, FloatArray, LayerDescription, Matrix
from edgekit.runners.cpu.onnx_reader.match_layers import Sizes, Stack
from edgekit.runners.cpu.onnx_reader.match_tensorrt_matrices import TensorRtMatrices
from edgekit.runners.cpu.onnx_reader.matcher import GraphMatcher, Unsupported, unsupported
from edgekit.runners.cpu.onnx_reader.onnx_proto import FLOAT, FLOAT16, INT64, NodeProto, ValueInfo

__all__ = ["Attention", "Heads", "TensorRtLayers"]

_FULL_MASK, _WINDOW_MASK = "attention_mask", "window_mask"


@dataclass(frozen=True, slots=True)
class Heads:
    """A projection into heads.

    Attributes:
        x: Its input.
        matrix: The projection.
        norm: Weights of the norm of each head, or None.
        count: Number of heads.
        dim: Width of a head.
    """

    x: str
    matrix: Matrix
    norm: FloatArray | None
    count: int
    dim: int


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention, from the projections to the mixed values.

    Attributes:
        q: Queries.
        k: Keys.
        v: Values.
        scale: Factor of the queries.
        mask: Name of the mask input.
        tables: Names of the RoPE tables.
    """

    q: Heads
    k: Heads
    v: Heads
    scale: float
    mask: str
    tables: tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Mlp:
    x: str
    gate_up: tuple[Matrix, Matrix]
    down: Matrix
    activation: Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: FloatArray
    attention: Attention
    o: Matrix
    attention_out_norm: FloatArray | None
    mlp_norm: FloatArray
    mlp: _Mlp
    mlp_out_norm: FloatArray | None


class TensorRtLayers(ABC):
    """Matches layers.

    Args:
        matcher: The matcher of the graph.
        matrices: Matches its matrices.
        hidden: Width of the residual stream.
    """

    opsets: ClassVar[dict[str, int]]
    total: ClassVar[str]
    """Name of the dimension of the positions that a mask hides or shows."""

    def __init__(self, matcher: GraphMatcher, matrices: TensorRtMatrices, hidden: int) -> None:
        self._matcher = matcher
        self._matrices = matrices
        self._hidden = hidden
        self._eps: float | None = None
        self._masks: set[str] = set()

    # residual ─┬─ norm ─ attention ─ o_proj ─ Cast ─ (norm) ─ Add ─┬─ norm ─ mlp ─ Cast ─ (norm) ─ Add ─▶ residual
    #           └───────────────────────────────────────────────────┘└──────────────────────────────┘
    # After the last layer's attention, only the rows whose logits are wanted remain.
    def read(self, normed: str) -> Stack:
        """Match the layers that lead to a value.

        Args:
            normed: The input of the head.

        Raises:
            Unsupported: The graph does not match.
            BundleError: Bytes of a weight are missing, or the metadata does not belong to the graph.
        """
        count = sum(value.name.startswith("past_key_values.") for value in self._matcher.graph.inputs) // 2
        final_norm, residual = self._normed(normed)
        found: list[_Layer] = []
        for index in reversed(range(count)):
            layer, residual = self._layer(residual, index, last=index + 1 == count)
            found.append(layer)
        found.reverse()
        sizes = {
            Sizes(layer.mlp.down.shape[1], layer.attention.q.count, layer.attention.k.count, layer.attention.q.dim,
                  layer.mlp.activation)
            for layer in found
        }  # fmt: skip
        if len(sizes) != 1 or self._eps is None:
            raise Unsupported("the layers of the graph differ in size")
        size = sizes.pop()
        window = self._window()
        names = list(dict.fromkeys(layer.attention.tables for layer in found))
        layers = tuple(
            LayerDescription(
                input_norm=layer.input_norm,
                mlp_norm=layer.mlp_norm,
                attention_out_norm=layer.attention_out_norm,
                mlp_out_norm=layer.mlp_out_norm,
                q_norm=layer.attention.q.norm,
                k_norm=layer.attention.k.norm,
                qkv=(layer.attention.q.matrix, layer.attention.k.matrix, layer.attention.v.matrix),
                o=layer.o,
                gate_up=layer.mlp.gate_up,
                down=layer.mlp.down,
                rope=names.index(layer.attention.tables),
                window=-1 if layer.attention.mask == _FULL_MASK else window,
                scale=layer.attention.scale,
            )
            for layer in found
        )
        return Stack(residual, layers, final_norm, self._tables(names), size, self._eps)

    def ends(self, stack: Stack, vocab: int) -> tuple[list[ValueInfo], list[ValueInfo]]:
        """Return the inputs and outputs of a graph whose layers were matched."""
        inputs = [
            ValueInfo("input_ids", INT64, ("batch", "sequence")),
            ValueInfo("position_ids", INT64, ("batch", "sequence")),
            ValueInfo("logits_index", INT64, ("rows",)),
            *(ValueInfo(mask, FLOAT16, ("batch", 1, "sequence", self.total)) for mask in self._masks),
            *self._more_inputs(),
        ]
        outputs = [ValueInfo("logits", FLOAT, ("batch", "rows", vocab))]
        past, present = self._cache_shapes(stack.sizes)
        for index in range(len(stack.layers)):
            inputs += [ValueInfo(f"past_key_values.{index}.{part}", FLOAT16, past) for part in ("key", "value")]
            outputs += [ValueInfo(f"present.{index}.{part}", FLOAT16, present) for part in ("key", "value")]
        return inputs, outputs

    @abstractmethod
    def _more_inputs(self) -> list[ValueInfo]:
        """Return the inputs of the dialect that the others do not have."""

    @abstractmethod
    def _cache_shapes(self, sizes: Sizes) -> tuple[tuple[int | str, ...], tuple[int | str, ...]]:
        """Return the shapes of a layer's keys, or values, before and after a step."""

    @abstractmethod
    def _rms(self, value: str, width: int) -> tuple[str, FloatArray, float, NodeProto]:
        """Match an RMSNorm; return its input, its weights, its epsilon and a node to report."""

    @abstractmethod
    def _attention(self, mixed: str, index: int) -> Attention:
        """Match the attention of a layer that mixes values, `[batch, heads, sequence, head_dim]`."""

    def _layer(self, residual: str, index: int, *, last: bool) -> tuple[_Layer, str]:
        """Match the layer that produces a residual stream; return it and the residual stream before it."""
        matcher = self._matcher
        middle, mlp_out_norm, branch = self._added(residual)
        mlp = self._mlp(branch)
        mlp_norm, other = self._normed(mlp.x)
        residual, attention_out_norm, branch = self._added(middle)
        joined, o = self._matrices.linear(branch)
        if last:
            joined, residual = self._rows(joined), self._rows(residual)
        join = matcher.match(joined, "Reshape", inputs=(2,))
        matcher.expect_ints(join, join.inputs[1], [0, 0, -1])
        attention = self._attention(self._transposed(join.inputs[0], 0, 2, 1, 3), index)
        input_norm, entry = self._normed(attention.q.x)
        if (middle, residual) != (other, entry):
            raise unsupported(join, "belongs to a layer whose norms and residual stream are different values")
        q, k, v = attention.q, attention.k, attention.v
        if {k.x, v.x} != {q.x} or {k.dim, v.dim} != {q.dim} or v.count != k.count or q.count % k.count:
            raise unsupported(join, f"mixes {q.count} query heads, {k.count} key heads and {v.count} value heads")
        width = q.count * q.dim
        shapes = [(q.matrix, width, self._hidden), (o, self._hidden, width), (mlp.down, self._hidden, None)]
        shapes += [(part.matrix, k.count * k.dim, self._hidden) for part in (k, v)]
        shapes += [(matrix, mlp.down.shape[1], self._hidden) for matrix in mlp.gate_up]
        for matrix, rows, columns in shapes:
            if matrix.shape != (rows, matrix.shape[1] if columns is None else columns):
                raise unsupported(join, f"belongs to a layer with a matrix of shape {matrix.shape}")
        if attention.mask not in {_FULL_MASK, _WINDOW_MASK}:
            raise unsupported(join, f"has the mask `{attention.mask[:80]}`")
        self._masks.add(attention.mask)
        return _Layer(input_norm, attention, o, attention_out_norm, mlp_norm, mlp, mlp_out_norm), residual

    def _added(self, value: str) -> tuple[str, FloatArray | None, str]:
        """Match the addition of a branch; return the residual stream before it, the branch's norm, and the branch."""
        matcher = self._matcher
        residual, branch = matcher.match(value, "Add", inputs=(2,)).inputs
        norm, producer = None, matcher.producer(branch)
        if producer is not None and producer.op_type != "Cast":
            norm, branch = self._norm(branch, self._hidden)
        return residual, norm, matcher.match(branch, "Cast", {"to": FLOAT}).inputs[0]

    # x ─┬─ gate_proj ─ act ─ Mul ─ down_proj ─▶          act: x · sigmoid(x), or GELU by its tanh approximation
    #    └─ up_proj ───────────┘
    def _mlp(self, branch: str) -> _Mlp:
        matcher = self._matcher
        product, down = self._matrices.linear(branch)
        multiplied = matcher.match(product, "Mul", inputs=(2,))
        acted, up = multiplied.inputs
        producer = matcher.producer(acted)
        activation: Literal["silu", "gelu_tanh"] = "silu"
        if producer is not None and producer.op_type == "Gelu":
            activation = "gelu_tanh"
            gate = matcher.match(acted, "Gelu", {"approximate": "tanh"}).inputs[0]
        else:
            act = matcher.match(acted, "Mul", inputs=(2,))
            gate = act.inputs[0]
            if matcher.match(act.inputs[1], "Sigmoid").inputs[0] != gate:
                raise unsupported(act, "multiplies by the sigmoid of another value")
        (x, first), (other, second) = self._matrices.linear(gate), self._matrices.linear(up)
        if x != other:
            raise unsupported(multiplied, "multiplies a gate and an up projection of different inputs")
        return _Mlp(x, (first, second), down, activation)

    # x ─ MatMul ─ Reshape ─ (Cast fp32 ─ norm ─ Cast fp16) ─ Transpose ─▶ [batch, heads, sequence, head_dim]
    def _heads(self, value: str) -> Heads:
        matcher = self._matcher
        value, norm = self._transposed(value, 0, 2, 1, 3), None
        producer = matcher.producer(value)
        normed = producer is not None and producer.op_type == "Cast"
        if normed:
            # The width of a head is not known yet: the norm's weights have it.
            cast = matcher.match(value, "Cast", {"to": FLOAT16})
            norm, value = self._norm(cast.inputs[0], None)
            value = matcher.match(value, "Cast", {"to": FLOAT}).inputs[0]
        apart = matcher.match(value, "Reshape", inputs=(2,))
        _, _, count, dim = matcher.array(apart, apart.inputs[1], np.int64, (4,)).tolist()
        x, matrix = self._matrices.linear(apart.inputs[0])
        if min(count, dim) < 1 or count * dim != matrix.shape[0] or (norm is not None and norm.size != dim):
            raise unsupported(apart, f"makes {count} heads of {dim} from {matrix.shape[0]} outputs")
        matcher.expect_ints(apart, apart.inputs[1], [0, 0, count, dim])
        return Heads(x, matrix, norm, count, dim)

    def _transposed(self, value: str, *perm: int) -> str:
        return self._matcher.match(value, "Transpose", {"perm": perm}).inputs[0]

    def _scaled(self, value: str) -> tuple[str, float]:
        """Match the product of queries with their scale; return both."""
        node = self._matcher.match(value, "Mul", inputs=(2,))
        scale = float(self._matcher.array(node, node.inputs[1], np.float16, ()))
        if not 0 < scale < math.inf:
            raise unsupported(node, f"has the unsupported scale {scale}")
        return node.inputs[0], scale

    def _normed(self, value: str) -> tuple[FloatArray, str]:
        """Match a norm of the residual stream, cast to FP16; return its weights and its input."""
        return self._norm(self._matcher.match(value, "Cast", {"to": FLOAT16}).inputs[0], self._hidden)

    def _norm(self, value: str, width: int | None) -> tuple[FloatArray, str]:
        """Match a norm; return its weights and its input. `width` is None if any is accepted."""
        x, weights, eps, node = self._rms(value, width or 0)
        if not 0 <= eps < math.inf or self._eps not in {None, eps}:
            raise unsupported(node, f"has the epsilon {eps}, other norms {self._eps}")
        self._eps = eps
        return weights, x

    def _rows(self, value: str) -> str:
        node = self._matcher.match(value, "Gather", {"axis": 1}, inputs=(2,))
        if node.inputs[1] != "logits_index":
            raise unsupported(node, "does not select rows by `logits_index`")
        return node.inputs[0]

    def _weights(self, node: NodeProto, name: str, width: int) -> FloatArray:
        weights: FloatArray = self._matcher.array(node, name, np.float32, (width or None,))
        return weights

    def _window(self) -> int:
        """Return the tokens that `window_mask` shows; -1 if the graph has no such mask."""
        text = self._matcher.graph.metadata.get("edgekit.window")
        if text is None and _WINDOW_MASK not in self._masks:
            return -1
        valid = text is not None and text.isascii() and text.isdigit() and len(text) < 10 and int(text)
        if not valid or text is None or _WINDOW_MASK not in self._masks:
            raise BundleError(f"the graph's metadata has `{str(text)[:40]}` for `edgekit.window`")
        return int(text)

    def _tables(self, names: list[tuple[str, str]]) -> tuple[tuple[Factors, Factors], ...]:
        graph = self._matcher.graph
        tables = tuple((graph.array(cos), graph.array(sin)) for cos, sin in names)
        if len({len(table) for pair in tables for table in pair}) != 1:
            raise Unsupported("the RoPE tables of the graph differ in length")
        return tables

    def _check_table(self, node: NodeProto, name: str, width: int) -> None:
        """Check that a node reads a RoPE table."""
        self._matcher.array(node, name, np.float16, (None, width))
