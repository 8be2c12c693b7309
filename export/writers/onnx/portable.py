"""The `portable` dialect: opset 21, primitive operators only, for TensorRT 10.3 and later (and any ONNX runtime).

In addition to the inputs and outputs in `edgekit.export.writers.onnx.tensorrt`:

    past_key_values.N.key, .value   fp16 [batch, kv_heads, blocks, 8, head_dim]
        ▼
    present.N.key, .value           fp16 [batch, kv_heads, sequence, head_dim]

with total = 8 · blocks + sequence. `present` holds *only* the rows of the new tokens: the graph reads the cache in
place without copying it, and the runner appends the new rows. The cache may end in padding, which the masks hide:
positions depend only on `position_ids`.

TensorRT copies an operand whose layout its matrix product does not take, in every step. It takes both halves of the
cache as they lie, because the keys are the left operand (`K · qᵀ`, and the small product is transposed), and because a
length in blocks of 8 is known to be aligned (`edgekit verify --build` shows the layers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgekit.export.architectures.decoder import Layer, Rope
from edgekit.export.writers.onnx.tensorrt import F32, TensorRtDialect

__all__ = ["BLOCK", "Portable"]

BLOCK = 8
"""Positions in one block of the cache."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """Values that all layers read: RoPE tables of the positions, the masks, and the shapes used by attention."""

    angles: Mapping[Rope, tuple[str, str]]
    masks: Mapping[str, str]
    past: str
    grouped: str
    flat: str


class Portable(TensorRtDialect):
    """Writes one model into one graph of primitive operators; arguments as for `TensorRtDialect`."""

    opsets: ClassVar[Mapping[str, int]] = {"": 21}

    _shared: _Shared

    def _declare_cache(self) -> None:
        heads, size = self._d.num_kv_heads, self._d.head_dim
        for layer in self._d.layers:
            for part in ("key", "value"):
                name = f"{layer.index}.{part}"
                self._g.input(f"past_key_values.{name}", self._type, ("batch", heads, "blocks", BLOCK, size))
                self._g.output(f"present.{name}", self._type, ("batch", heads, "sequence", size))

    # position_ids ─ Gather(cos, sin) ─ Unsqueeze ─▶ [batch, 1, sequence, dim / 2]
    #
    # a mask ─┬─ Cast ─ Unsqueeze ─▶ fp32 [batch, 1, 1, sequence, total]
    #         └─ Shape ─▶ [batch, kv_heads, group, sequence, total] and [batch, kv_heads, rows, total]
    def _begin(self, positions: str, masks: list[str]) -> None:
        g, d = self._g, self._d
        angles = {}
        for index, (rope, tables) in enumerate(self._tables().items()):
            path = "/model/rotary" if index == 0 else f"/model/rotary.{index}"
            rows = []
            for part, table in zip(("cos", "sin"), tables, strict=True):
                row = g.node("Gather", [table, positions], f"{path}/{part}/Gather", axis=0)
                rows.append(g.node("Unsqueeze", [row, self._int64("axis.1", [1])], f"{path}/{part}/Unsqueeze"))
            angles[rope] = (rows[0], rows[1])
        wide = {}
        for mask in masks:
            value = g.node("Cast", [mask], f"/model/{mask}/Cast", to=F32)
            wide[mask] = g.node("Unsqueeze", [value, self._int64("axis.2", [2])], f"/model/{mask}/Unsqueeze")
        # From the shapes of the operands themselves: the builder does not know that a mask is as long.
        path = "/model/shape"
        batch, sequence = (
            g.node("Shape", [positions], f"{path}/{name}/Shape", start=axis, end=axis + 1)
            for axis, name in enumerate(("batch", "sequence"))
        )
        cache = f"past_key_values.{d.layers[0].index}.key"
        blocks = g.node("Shape", [cache], f"{path}/blocks/Shape", start=2, end=3)
        past = g.node("Mul", [blocks, self._int64("block", [BLOCK])], f"{path}/past/Mul")
        total = g.node("Add", [past, sequence], f"{path}/total/Add")
        heads = self._int64("kv_heads", [d.num_kv_heads])
        group = self._int64("group", [d.num_heads // d.num_kv_heads])
        # Not left to Reshape as -1: the builder divides the most that the product may hold by the least that `total`
        # may be, and reserves memory for total² in every step.
        queries = g.node("Mul", [group, sequence], f"{path}/rows/Mul")
        self._shared = _Shared(
            angles=angles,
            masks=wide,
            past=past,
            grouped=g.node("Concat", [batch, heads, group, sequence, total], f"{path}/grouped", axis=0),
            flat=g.node("Concat", [batch, heads, queries, total], f"{path}/flat", axis=0),
        )

    # x (fp32) ─┬─ Mul(x, x) ─ ReduceMean ─ Add eps ─ Sqrt ─┐
    #           └──────────────────────────────────── Div ──┴─ Mul weight ─▶
    # Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    def _norm(self, x: str, weight: str, path: str) -> str:
        g = self._g
        scale = self._norm_weight(weight)
        square = g.node("Mul", [x, x], f"{path}/square/Mul")
        mean = g.node("ReduceMean", [square, self._int64("axis.last", [-1])], f"{path}/ReduceMean", keepdims=1)
        eps = g.constant("eps", np.array(self._d.rms_norm_eps, np.float32))
        mean = g.node("Add", [mean, eps], f"{path}/Add")
        normed = g.node("Div", [x, g.node("Sqrt", [mean], f"{path}/Sqrt")], f"{path}/Div")
        return g.node("Mul", [normed, scale], f"{path}/Mul")

    #  q ─ heads ─ RoPE ─ Mul scale ─ [kv_heads, group·sequence, d] ─ᵀ─┬─ past_key MatMul ─┐
    #  k ─ heads ─ RoPE ─▶ present.key ─────────────────────────── MatMul ──┘                │
    #                                                              └──────────── Concat ─────┘
    #  Concat ─ᵀ─ Cast fp32 ─ + mask ─ Softmax ─ Cast fp16 ─┬─ Slice past ─ MatMul past_value ─┐
    #                                                       └─ Slice new ── MatMul value ─ Add ┴▶ o_proj
    #  v ─ heads ─▶ present.value
    #
    # The query heads that share a key/value head become rows of one matrix, so K and V are not repeated; past and new
    # are multiplied separately, so they are not concatenated either.
    def _attention(self, layer: Layer, x: str, path: str) -> str:
        g, d, shared = self._g, self._d, self._shared
        span = self._int64("shape.cache", [0, d.num_kv_heads, -1, d.head_dim])
        past_key, past_value = (
            g.node("Reshape", [f"past_key_values.{layer.index}.{part}", span], f"{path}/past_{part}/Reshape")
            for part in ("key", "value")
        )
        query = self._heads(x, layer.q, layer.q_norm, f"{path}/q_proj")
        query = self._rope(query, layer.rope, f"{path}/q_rotary")
        query = g.node("Mul", [query, self._scale()], f"{path}/scale/Mul")
        query = g.node("Reshape", [query, span], f"{path}/q_rows/Reshape")
        query = g.node("Transpose", [query], f"{path}/q_rows/Transpose", perm=[0, 1, 3, 2])
        key = self._heads(x, layer.k, layer.k_norm, f"{path}/k_proj")
        key = self._rope(key, layer.rope, f"{path}/k_rotary", output=f"present.{layer.index}.key")
        value = self._heads(x, layer.v, None, f"{path}/v_proj", output=f"present.{layer.index}.value")

        scores = [
            g.node("MatMul", [keys, query], f"{path}/{part}_scores/MatMul")
            for part, keys in (("past", past_key), ("new", key))
        ]
        joined = g.node("Concat", scores, f"{path}/scores/Concat", axis=-2)
        joined = g.node("Transpose", [joined], f"{path}/scores/Transpose", perm=[0, 1, 3, 2])
        joined = g.node("Cast", [joined], f"{path}/scores/Cast", to=F32)
        joined = g.node("Reshape", [joined, shared.grouped], f"{path}/scores/Reshape")
        joined = g.node("Add", [joined, shared.masks[self._mask_of(layer)]], f"{path}/mask/Add")
        weights = g.node("Softmax", [joined], f"{path}/Softmax", axis=-1)
        weights = g.node("Cast", [weights], f"{path}/weights/Cast", to=self._type)
        weights = g.node("Reshape", [weights, shared.flat], f"{path}/weights/Reshape")

        zero, end, axis = self._int64("index.0", [0]), self._int64("end", [2**31 - 1]), self._int64("index.3", [3])
        mixed = []
        for part, start, stop, values in (
            ("past", zero, shared.past, past_value),
            ("new", shared.past, end, value),
        ):
            span = g.node("Slice", [weights, start, stop, axis], f"{path}/{part}_weights/Slice")
            mixed.append(g.node("MatMul", [span, values], f"{path}/{part}_values/MatMul"))
        out = g.node("Add", mixed, f"{path}/values/Add")
        out = g.node(
            "Reshape", [out, self._int64("shape.heads", [0, d.num_heads, -1, d.head_dim])], f"{path}/out/Reshape"
        )
        return self._join(out, path)

    # x ─ Split ─┬─ a ─┬ · cos ─ Sub ─┐
    #            │     └ · sin ─ Add ─┼─ Concat ─▶        (a cos - b sin, b cos + a sin, rest)
    #            ├─ b ──────────┘     │
    #            └─ (rest) ───────────┘
    def _rope(self, x: str, rope: Rope, path: str, output: str | None = None) -> str:
        g, (cos, sin) = self._g, self._shared.angles[rope]
        sizes = [rope.dim // 2, rope.dim // 2, self._d.head_dim - rope.dim]
        parts = ("a", "b", "rest") if sizes[2] else ("a", "b")
        split = self._int64(f"rotary.{rope.dim}", sizes[: len(parts)])
        a, b, *rest = g.nodes("Split", [x, split], f"{path}/Split", [f"{path}/{part}" for part in parts], axis=-1)

        def times(value: str, angle: str, name: str) -> str:
            return g.node("Mul", [value, angle], f"{path}/{name}/Mul")

        first = g.node("Sub", [times(a, cos, "a_cos"), times(b, sin, "b_sin")], f"{path}/Sub")
        second = g.node("Add", [times(b, cos, "b_cos"), times(a, sin, "a_sin")], f"{path}/Add")
        return g.node("Concat", [first, second, *rest], f"{path}/Concat", output=output, axis=-1)
