"""Builds one transformer layer as an ONNX graph with its weights as inputs, so one session serves all similar layers.

    hidden   fp32 [windows, tokens, hidden]
    cos, sin fp32 [tokens, rope_dim / 2]
    mask     fp32 [tokens, tokens]          additive: 0 where a row may attend, else a large negative number
    norms `[n]` (with the norm offset added), matrices `[out, in]`, biases `[out]`: by part name (`q`, `q_bias`, …)
        ▼
    hidden_out                              [windows, tokens, hidden]
    attention_in, mlp_in                    [windows, tokens, hidden]        inputs of q, k, v and of gate, up
    o_in                                    [windows, tokens, heads · head_dim]
    down_in                                 [windows, tokens, intermediate]

The mask and the RoPE tables are inputs too, so layers that differ only in those share a graph. Callers fetch only the
outputs they need. `Gemm` takes matrices in the checkpoint's `[out, in]` layout, so none is transposed in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.export.architectures.decoder import Decoder, Layer

__all__ = ["INPUTS", "Kind", "layer_model"]

INPUTS = {"attention": "attention_in", "o": "o_in", "mlp": "mlp_in", "down": "down_in"}
"""The graph outputs that hold the inputs of the four groups of matrices."""

_F32 = TensorProto.FLOAT
_MICROSOFT = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Kind:
    """The properties in which the graphs of a model's layers can differ.

    Attributes:
        biased: Which of q, k, v, o, gate, up and down have a bias.
        qk_norm: Queries and keys are normalized.
        attention_out_norm: The attention's output is normalized.
        mlp_out_norm: The MLP's output is normalized.
        rope_dim: Elements of a head that RoPE rotates.
    """

    biased: frozenset[str]
    qk_norm: bool
    attention_out_norm: bool
    mlp_out_norm: bool
    rope_dim: int

    @classmethod
    def of(cls, layer: Layer) -> Kind:
        """Return the kind of a layer."""
        parts = ("q", "k", "v", "o", "gate", "up", "down")
        return cls(
            biased=frozenset(name for name, linear in zip(parts, layer.linears(), strict=True) if linear.bias),
            qk_norm=layer.q_norm is not None,
            attention_out_norm=layer.attention_out_norm is not None,
            mlp_out_norm=layer.mlp_out_norm is not None,
            rope_dim=layer.rope.dim,
        )


def layer_model(decoder: Decoder, kind: Kind) -> bytes:
    """Return the graph of one kind of layer, serialized."""
    return _Builder(decoder, kind).model()


class _Builder:
    def __init__(self, decoder: Decoder, kind: Kind) -> None:
        self._d = decoder
        self._kind = kind
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._count = 0

    def model(self) -> bytes:
        d, kind = self._d, self._kind
        hidden = self._input("hidden", "windows", "tokens", d.hidden_size)
        normed = self._output(self._norm(hidden, "input_norm", d.hidden_size), "attention_in")
        attended = self._output(self._attention(normed), "o_in")
        branch = self._linear(attended, "o", d.hidden_size, d.num_heads * d.head_dim)
        if kind.attention_out_norm:
            branch = self._norm(branch, "attention_out_norm", d.hidden_size)
        hidden = self._node("Add", hidden, branch)
        normed = self._output(self._norm(hidden, "mlp_norm", d.hidden_size), "mlp_in")
        gate = self._linear(normed, "gate", d.intermediate_size, d.hidden_size)
        up = self._linear(normed, "up", d.intermediate_size, d.hidden_size)
        inner = self._output(self._node("Mul", self._activation(gate), up), "down_in")
        branch = self._linear(inner, "down", d.hidden_size, d.intermediate_size)
        if kind.mlp_out_norm:
            branch = self._norm(branch, "mlp_out_norm", d.hidden_size)
        self._output(self._node("Add", hidden, branch), "hidden_out")
        widths = {
            "hidden_out": d.hidden_size,
            "attention_in": d.hidden_size,
            "o_in": d.num_heads * d.head_dim,
            "mlp_in": d.hidden_size,
            "down_in": d.intermediate_size,
        }
        outputs = [
            helper.make_tensor_value_info(name, _F32, ["windows", "tokens", width]) for name, width in widths.items()
        ]
        graph = helper.make_graph(self._nodes, "layer", self._inputs, outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(_MICROSOFT, 1)]
        model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        return model

    # x ─┬─ q ─ heads ─ (norm) ─ RoPE ─ [kv_heads, group · tokens, head_dim] ─┐
    #    ├─ k ─ heads ─ (norm) ─ RoPE ─ᵀ───────────────────────────────── MatMul ─ · scale ─ + mask ─ Softmax ─┐
    #    └─ v ─ heads ──────────────────────────────────────────────────────────────────────────────────── MatMul ─▶
    #
    # The query heads that share a key/value head become rows of one matrix, so keys and values are not repeated.
    def _attention(self, x: str) -> str:
        d = self._d
        group = d.num_heads // d.num_kv_heads
        query = self._node("Transpose", self._rope(self._heads(x, "q", d.num_heads)), perm=[0, 2, 1, 3])
        query = self._node("Mul", query, self._constant("scale", np.array(d.attention_scale, np.float32)))
        query = self._reshape(query, 0, d.num_kv_heads, -1, d.head_dim)
        key = self._node("Transpose", self._rope(self._heads(x, "k", d.num_kv_heads)), perm=[0, 2, 3, 1])
        value = self._node("Transpose", self._heads(x, "v", d.num_kv_heads), perm=[0, 2, 1, 3])
        scores = self._node("MatMul", query, key)
        # [windows, kv_heads, group · tokens, tokens] to [windows · kv_heads · group, tokens, tokens] and back.
        shape = self._node("Shape", scores)
        mask = self._input("mask", "tokens", "tokens")
        scores = self._node("Reshape", scores, self._node("Concat", self._ints(-1), self._node("Shape", mask), axis=0))
        weights = self._node("Softmax", self._node("Add", scores, mask), axis=-1)
        mixed = self._node("MatMul", self._node("Reshape", weights, shape), value)
        mixed = self._reshape(mixed, 0, d.num_kv_heads * group, -1, d.head_dim)
        return self._reshape(self._node("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, d.num_heads * d.head_dim)

    def _heads(self, x: str, part: str, count: int) -> str:
        """Project and split into heads: `[windows, tokens, count, head_dim]`, normalized if the kind has QK norm."""
        d = self._d
        out = self._reshape(self._linear(x, part, count * d.head_dim, d.hidden_size), 0, 0, count, d.head_dim)
        return self._norm(out, f"{part}_norm", d.head_dim) if self._kind.qk_norm and part != "v" else out

    # x ─ Split ─┬─ a ─┬ · cos ─ Sub ─┐
    #            │     └ · sin ─ Add ─┼─ Concat ─▶        (a cos - b sin, b cos + a sin, rest)
    #            ├─ b ──────────┘     │
    #            └─ (rest) ───────────┘
    def _rope(self, x: str) -> str:
        dim, half = self._d.head_dim, self._kind.rope_dim // 2
        sizes = [half, half] + ([dim - 2 * half] if dim > 2 * half else [])
        names = [self._name("part") for _ in sizes]
        self._nodes.append(helper.make_node("Split", [x, self._ints(*sizes)], names, axis=-1))
        # [tokens, half] to [tokens, 1, half]: broadcast over heads.
        cos, sin = (
            self._node("Unsqueeze", self._input(part, "tokens", half), self._ints(1)) for part in ("cos", "sin")
        )
        a, b, rest = names[0], names[1], names[2:]
        first = self._node("Sub", self._node("Mul", a, cos), self._node("Mul", b, sin))
        second = self._node("Add", self._node("Mul", b, cos), self._node("Mul", a, sin))
        return self._node("Concat", first, second, *rest, axis=-1)

    def _activation(self, gate: str) -> str:
        if self._d.activation == "silu":
            # With alpha 1, QuickGelu is SiLU: x · sigmoid(x).
            return self._node("QuickGelu", gate, domain=_MICROSOFT, alpha=1.0)
        return self._node("Gelu", gate, approximate="tanh")

    def _linear(self, x: str, part: str, columns: int, inner: int) -> str:
        weight = self._input(part, columns, inner)
        bias = [self._input(f"{part}_bias", columns)] if part in self._kind.biased else []
        shape = self._node("Shape", x, end=2)
        flat = self._node("Gemm", self._reshape(x, -1, inner), weight, *bias, transB=1)
        return self._node("Reshape", flat, self._node("Concat", shape, self._ints(columns), axis=0))

    def _norm(self, x: str, part: str, size: int) -> str:
        weight = self._input(part, size)
        return self._node("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=self._d.rms_norm_eps)

    def _reshape(self, x: str, *shape: int) -> str:
        return self._node("Reshape", x, self._ints(*shape))

    def _ints(self, *values: int) -> str:
        return self._constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def _constant(self, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        self._constants.setdefault(name, numpy_helper.from_array(values, name))
        return name

    def _input(self, name: str, *dims: int | str) -> str:
        if all(declared.name != name for declared in self._inputs):
            self._inputs.append(helper.make_tensor_value_info(name, _F32, list(dims)))
        return name

    def _output(self, value: str, name: str) -> str:
        """Rename the last node's output."""
        assert self._nodes[-1].output[0] == value  # noqa: S101  a slip in this file, not a user's mistake
        self._nodes[-1].output[0] = name
        return name

    def _node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = self._name(op)
        self._nodes.append(helper.make_node(op, list(inputs), [name], domain=domain or None, **attributes))
        return name

    def _name(self, op: str) -> str:
        self._count += 1
        return f"{op}_{self._count}"
