"""Matches norms and attention of the `portable` dialect.

The counterpart of `edgekit.export.writers.onnx.portable`, which writes and draws the patterns.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from edgekit.runners.cpu.model import FloatArray
from edgekit.runners.cpu.onnx_reader.match_layers import Sizes
from edgekit.runners.cpu.onnx_reader.match_tensorrt import Attention, Heads, TensorRtLayers
from edgekit.runners.cpu.onnx_reader.matcher import Attributes, unsupported
from edgekit.runners.cpu.onnx_reader.onnx_proto import FLOAT, FLOAT16, NodeProto, ValueInfo

__all__ = ["PortableLayers"]

# Positions in one block of the cache.
_BLOCK = 8


class PortableLayers(TensorRtLayers):
    """Matches layers of primitive operators; arguments as for `TensorRtLayers`."""

    opsets: ClassVar[dict[str, int]] = {"": 21}
    total: ClassVar[str] = "total"

    def _more_inputs(self) -> list[ValueInfo]:
        return []

    def _cache_shapes(self, sizes: Sizes) -> tuple[tuple[int | str, ...], tuple[int | str, ...]]:
        heads, dim = sizes.kv_heads, sizes.head_dim
        return ("batch", heads, "blocks", _BLOCK, dim), ("batch", heads, "sequence", dim)

    # x (fp32) ─┬─ Mul(x, x) ─ ReduceMean ─ Add eps ─ Sqrt ─┐
    #           └──────────────────────────────────── Div ──┴─ Mul weight ─▶
    def _rms(self, value: str, width: int) -> tuple[str, FloatArray, float, NodeProto]:
        matcher = self._matcher
        node = matcher.match(value, "Mul", inputs=(2,))
        weights = self._weights(node, node.inputs[1], width)
        divided = matcher.match(node.inputs[0], "Div", inputs=(2,))
        added = matcher.match(matcher.match(divided.inputs[1], "Sqrt").inputs[0], "Add", inputs=(2,))
        eps = float(matcher.array(added, added.inputs[1], np.float32, ()))
        mean = matcher.match(added.inputs[0], "ReduceMean", {"keepdims": 1}, inputs=(2,))
        matcher.expect_ints(mean, mean.inputs[1], [-1])
        square = matcher.match(mean.inputs[0], "Mul", inputs=(2,))
        if set(square.inputs) != {divided.inputs[0]}:
            raise unsupported(square, "does not square the value that is normed")
        return divided.inputs[0], weights, eps, node

    #  q ─ heads ─ RoPE ─ Mul scale ─ [kv_heads, group·sequence, d] ─ᵀ─┬─ past_key MatMul ─┐
    #  k ─ heads ─ RoPE ─▶ present.key ─────────────────────────── MatMul ──┘                │
    #                                                              └──────────── Concat ─────┘
    #  Concat ─ᵀ─ Cast fp32 ─ + mask ─ Softmax ─ Cast fp16 ─┬─ Slice past ─ MatMul past_value ─┐
    #                                                       └─ Slice new ── MatMul value ─ Add ┴▶
    #  v ─ heads ─▶ present.value
    def _attention(self, mixed: str, index: int) -> Attention:
        matcher = self._matcher
        shaped = matcher.match(mixed, "Reshape", inputs=(2,))
        added = matcher.match(shaped.inputs[0], "Add", inputs=(2,))
        products = [matcher.match(value, "MatMul", inputs=(2,)) for value in added.inputs]
        slices = [matcher.match(product.inputs[0], "Slice", inputs=(4,)) for product in products]
        weights, past = slices[0].inputs[0], slices[0].inputs[2]
        for node, start, end in ((slices[0], [0], None), (slices[1], None, [2**31 - 1])):
            for name, wanted in ((node.inputs[1], start), (node.inputs[2], end)):
                if wanted is not None:
                    matcher.expect_ints(node, name, wanted)
                elif name != past:
                    raise unsupported(node, "splits the weights elsewhere than at the end of the past")
            matcher.expect_ints(node, node.inputs[3], [3])
            if node.inputs[0] != weights:
                raise unsupported(node, "slices other weights than its counterpart")
        past_value, new_value = (product.inputs[1] for product in products)
        v = self._heads(new_value)

        flat = matcher.match(weights, "Reshape", inputs=(2,))
        cast = matcher.match(flat.inputs[0], "Cast", {"to": FLOAT16})
        softmax = matcher.match(cast.inputs[0], "Softmax", {"axis": -1})
        masked = matcher.match(softmax.inputs[0], "Add", inputs=(2,))
        grouped = matcher.match(masked.inputs[0], "Reshape", inputs=(2,))
        cast = matcher.match(grouped.inputs[0], "Cast", {"to": FLOAT})
        joined = matcher.match(self._transposed(cast.inputs[0], 0, 1, 3, 2), "Concat", {"axis": -2}, inputs=(2,))
        scores = [matcher.match(value, "MatMul", inputs=(2,)) for value in joined.inputs]
        (past_key, queries), (new_key, others) = (node.inputs for node in scores)
        rows = matcher.match(self._transposed(queries, 0, 1, 3, 2), "Reshape", inputs=(2,))
        query, scale = self._scaled(rows.inputs[0])
        (q, tables), (k, other) = self._rope(query), self._rope(new_key)
        cache = [f"present.{index}.{part}" for part in ("key", "value")]
        if queries != others or tables != other or [new_key, new_value] != cache:
            raise unsupported(joined, f"does not multiply the queries of layer {index} by its keys")
        matcher.expect_ints(shaped, shaped.inputs[1], [0, q.count, -1, q.dim])
        span = [0, k.count, -1, k.dim]
        matcher.expect_ints(rows, rows.inputs[1], span)
        for part, name in (("key", past_key), ("value", past_value)):
            reshaped = matcher.match(name, "Reshape", inputs=(2,))
            matcher.expect_ints(reshaped, reshaped.inputs[1], span)
            if reshaped.inputs[0] != f"past_key_values.{index}.{part}":
                raise unsupported(reshaped, f"does not read the cache of layer {index}")
        self._check_shapes(grouped, flat, past, q, k)
        return Attention(q, k, v, scale, self._mask(masked.inputs[1]), tables)

    # a mask ─ Cast ─ Unsqueeze ─▶ fp32 [batch, 1, 1, sequence, total]
    def _mask(self, value: str) -> str:
        matcher = self._matcher
        wide = matcher.match(value, "Unsqueeze", inputs=(2,))
        matcher.expect_ints(wide, wide.inputs[1], [2])
        return matcher.match(wide.inputs[0], "Cast", {"to": FLOAT}).inputs[0]

    def _check_shapes(self, grouped: NodeProto, flat: NodeProto, past: str, q: Heads, k: Heads) -> None:
        """Check the shapes `[batch, kv_heads, group, sequence, total]` and `[batch, kv_heads, rows, total]`."""
        matcher = self._matcher
        lists = [matcher.match(node.inputs[1], "Concat", {"axis": 0}, inputs=(4, 5)) for node in (grouped, flat)]
        if [len(node.inputs) for node in lists] != [5, 4]:
            raise unsupported(grouped, "has a shape of another length")
        batch, heads, group, sequence, total = lists[0].inputs
        others = lists[1].inputs
        matcher.expect_ints(lists[0], heads, [k.count])
        matcher.expect_ints(lists[0], group, [q.count // k.count])
        matcher.expect_ints(lists[1], others[1], [k.count])
        rows = matcher.match(others[2], "Mul", inputs=(2,))
        matcher.expect_ints(rows, rows.inputs[0], [q.count // k.count])
        self._check_size(batch, "position_ids", 0)
        self._check_size(sequence, "position_ids", 1)
        added = matcher.match(total, "Add", inputs=(2,))
        times = matcher.match(past, "Mul", inputs=(2,))
        matcher.expect_ints(times, times.inputs[1], [_BLOCK])
        self._check_size(times.inputs[0], "past_key_values.0.key", 2)
        if (others[0], others[3], rows.inputs[1]) != (batch, total, sequence) or added.inputs != (past, sequence):
            raise unsupported(flat, "has another shape than its counterpart")

    def _check_size(self, value: str, name: str, axis: int) -> None:
        options: Attributes = {"start": axis, "end": axis + 1}
        node = self._matcher.match(value, "Shape", options)
        if node.inputs[0] != name:
            raise unsupported(node, f"is not the size of `{name}`")

    # x ─ Split ─┬─ a ─┬ · cos ─ Sub ─┐
    #            │     └ · sin ─ Add ─┼─ Concat ─▶        (a cos - b sin, b cos + a sin, rest)
    #            ├─ b ──────────┘     │
    #            └─ (rest) ───────────┘
    def _rope(self, value: str) -> tuple[Heads, tuple[str, str]]:
        matcher = self._matcher
        joined = matcher.match(value, "Concat", {"axis": -1}, inputs=(2, 3))
        parts = len(joined.inputs)
        first = matcher.match(joined.inputs[0], "Sub", inputs=(2,))
        second = matcher.match(joined.inputs[1], "Add", inputs=(2,))
        (a, cos), (b, sin), (other_b, other_cos), (other_a, other_sin) = (
            matcher.match(name, "Mul", inputs=(2,)).inputs for node in (first, second) for name in node.inputs
        )
        if (a, b, cos, sin) != (other_a, other_b, other_cos, other_sin):
            raise unsupported(joined, "does not rotate one pair of vectors by one angle")
        split = None
        for at, name in enumerate((a, b, *joined.inputs[2:])):
            node = matcher.match(name, "Split", {"axis": -1}, inputs=(2,), output=at, outputs=parts)
            if split not in {None, node.inputs}:
                raise unsupported(node, "does not split the same value as its counterpart")
            split = node.inputs
        heads = self._heads(node.inputs[0])
        tables = self._angles(cos), self._angles(sin)
        half = matcher.graph.array(tables[0]).shape[1]
        sizes = [half, half, heads.dim - 2 * half]
        if (sizes[2] > 0) != (parts > 2):
            raise unsupported(node, f"rotates {2 * half} elements of heads of {heads.dim}")
        matcher.expect_ints(node, node.inputs[1], sizes[:parts])
        for table in tables:
            self._check_table(joined, table, half)
        return heads, tables

    # position_ids ─ Gather(table) ─ Unsqueeze ─▶ [batch, 1, sequence, dim / 2]
    def _angles(self, value: str) -> str:
        """Match the rows of a RoPE table; return its name."""
        matcher = self._matcher
        wide = matcher.match(value, "Unsqueeze", inputs=(2,))
        matcher.expect_ints(wide, wide.inputs[1], [1])
        node = matcher.match(wide.inputs[0], "Gather", {"axis": 0}, inputs=(2,))
        if node.inputs[1] != "position_ids":
            raise unsupported(node, "looks up angles by another input than `position_ids`")
        matcher.array(node, node.inputs[0], np.float16, (None, None))
        return node.inputs[0]
