"""Matches quantized matrices in TensorRT's dialects: the nodes that multiply by them or look up rows in them.

The counterpart of `edgekit.export.writers.onnx.matrices` and `packed_table`, which write and draw the patterns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.runners.cpu.model import Bytes, Matrix, Plane, belong_together
from edgekit.runners.cpu.onnx_reader.match_matrices import check_grid
from edgekit.runners.cpu.onnx_reader.matcher import GraphMatcher, integer, unsupported
from edgekit.runners.cpu.onnx_reader.onnx_proto import FLOAT, INT32, NodeProto

__all__ = ["TensorRtMatrices"]

HalfArray = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class _Product:
    """A product with an INT4 tensor `[in, out]`."""

    node: NodeProto
    x: str
    name: str
    codes: Bytes
    scales: HalfArray
    group_size: int
    shape: tuple[int, int]


class TensorRtMatrices:
    """Matches matrices.

    Args:
        matcher: The matcher of the graph.
    """

    def __init__(self, matcher: GraphMatcher) -> None:
        self._matcher = matcher

    # weight (INT4 [in, out]) ─ DequantizeLinear(axis=0, block_size) ─┐
    # x ─┬──────────────────────────────────────────────────── MatMul ┴─ (Add low) ─ (Add offsets) ─ (Add bias) ─▶
    #    └─ (sums of x over each group) ─ (MatMul offsets [groups, out]) ───────────────┘
    def linear(self, value: str, *, may_have_bias: bool = True) -> tuple[str, Matrix]:
        """Match a product with a quantized matrix; return its input and the matrix.

        Raises:
            Unsupported: The value is not such a product.
            BundleError: Bytes of the matrix are missing.
        """
        matcher = self._matcher
        bias = None
        producer = matcher.producer(value)
        if may_have_bias and producer is not None and producer.op_type == "Add" and len(producer.inputs) > 1:
            name = producer.inputs[1]
            if name in matcher.graph.tensors:
                added = matcher.match(value, "Add", inputs=(2,))
                bias = matcher.array(added, name, np.float16, (None,)).astype(np.float32)
                value = added.inputs[0]
        terms: list[str] = []
        while (producer := matcher.producer(value)) is not None and producer.op_type == "Add":
            added = matcher.match(value, "Add", inputs=(2,))
            value = added.inputs[0]
            terms.append(added.inputs[1])
        high = self._product(value)
        matrix = Matrix(
            name=high.name.removesuffix(".qweight"),
            codes=high.codes,
            scales=high.scales.T,
            zero_points=None,
            float_offsets=None,
            bits=4,
            group_size=high.group_size,
            shape=high.shape[::-1],
            by_columns=True,
        )
        # Offsets are added last, and always with 8 bits.
        if terms:
            matrix = replace(matrix, float_offsets=self._offsets(terms.pop(0), high).T)
        if terms:
            low = self._product(terms.pop(0))
            same = (low.x, low.shape, low.group_size) == (high.x, high.shape, high.group_size)
            # All of the scales are checked when they are read.
            if not same or not belong_together(high.scales[0], low.scales[0]):
                raise unsupported(low.node, "does not belong to the matrix that it is added to")
            matrix = replace(matrix, bits=8, low=Plane(low.codes, low.scales.T))
        if terms:
            raise unsupported(high.node, "is part of a sum of too many products")
        if bias is not None:
            if bias.shape != matrix.shape[:1]:
                raise unsupported(high.node, f"has a bias of {bias.size} numbers for {matrix.shape[0]} outputs")
            matrix = replace(matrix, bias=bias)
        return high.x, matrix

    def _product(self, value: str) -> _Product:
        matcher = self._matcher
        node = matcher.match(value, "MatMul", inputs=(2,))
        x, weight = node.inputs
        dequantized = matcher.match(weight, "DequantizeLinear", {"axis": 0, "block_size": int}, inputs=(2,))
        packed, scales = dequantized.inputs
        codes, (inner, out) = matcher.int4(dequantized, packed)
        groups = check_grid(dequantized, 4, integer(dequantized, "block_size"), (out, inner))
        factors = matcher.array(dequantized, scales, np.float16, (groups, out))
        return _Product(node, x, packed, codes, factors, inner // groups, (inner, out))

    def _offsets(self, term: str, product: _Product) -> HalfArray:
        """Match the offsets, which are multiplied by the sums of the inputs over each group; `[groups, out]`."""
        matcher, groups = self._matcher, product.scales.shape[0]
        node = matcher.match(term, "MatMul", inputs=(2,))
        sums = matcher.match(node.inputs[0], "ReduceSum", {"keepdims": 0}, inputs=(2,))
        matcher.expect_ints(sums, sums.inputs[1], [-1])
        split = matcher.match(sums.inputs[0], "Reshape", inputs=(2,))
        matcher.expect_ints(split, split.inputs[1], [0, 0, groups, product.group_size])
        if split.inputs[0] != product.x:
            raise unsupported(split, "reads another input than the matrix that the offsets belong to")
        offsets: HalfArray = matcher.array(node, node.inputs[1], np.float16, product.scales.shape)
        return offsets

    # ids ─┬─ Gather(words) ─ unpack ─ Cast ─ Reshape ─ (Sub half) ─ Mul ─ (Add) ─ Reshape ─▶ rows
    #      ├─ Gather(scales) ─ Unsqueeze ─ Cast ──────────────────────┘      │
    #      └─ (Gather(offsets) ─ Unsqueeze ─ Cast) ──────────────────────────┘
    def lookup(self, value: str, ids: str) -> Matrix:
        """Match a lookup of rows `ids` in a quantized matrix; return the matrix.

        Raises:
            Unsupported: The value is not such a lookup.
            BundleError: Bytes of the matrix are missing.
        """
        matcher = self._matcher
        joined = matcher.match(value, "Reshape", inputs=(2,))
        value, offsets = joined.inputs[0], None
        producer = matcher.producer(value)
        if producer is not None and producer.op_type == "Add":
            added = matcher.match(value, "Add", inputs=(2,))
            value, offsets = added.inputs[0], self._gathered(added.inputs[1], ids)
        scaled = matcher.match(value, "Mul", inputs=(2,))
        scales = self._gathered(scaled.inputs[1], ids)
        value = scaled.inputs[0]
        centred = None
        if offsets is None:
            centred = matcher.match(value, "Sub", inputs=(2,))
            value = centred.inputs[0]
        split = matcher.match(value, "Reshape", inputs=(2,))
        cast = matcher.match(split.inputs[0], "Cast", {"to": FLOAT})
        words, bits, gather = self._unpacked(cast.inputs[0], ids)
        if centred is not None:
            matcher.expect(centred, centred.inputs[1], np.array(1 << (bits - 1), np.float32))
        (vocab, groups), hidden = scales.shape, words.shape[1] * 32 // bits
        size = hidden // groups
        if check_grid(split, bits, size, (vocab, hidden)) != groups:
            raise unsupported(split, f"has {groups} groups for {hidden} elements")
        matcher.expect_ints(split, split.inputs[1], [0, 0, groups, size])
        matcher.expect_ints(joined, joined.inputs[1], [0, 0, hidden])
        if words.shape[0] != vocab or (offsets is not None and offsets.shape != scales.shape):
            raise unsupported(gather, "has another number of rows than its scales or offsets")
        # The offsets are whole: no zero point is subtracted.
        points = np.zeros((), np.uint8) if offsets is not None else None
        columns = groups if bits == 8 else (groups + 1) // 2
        return Matrix(
            name=gather.inputs[0].removesuffix(".qweight"),
            codes=words.view(np.uint8).reshape(vocab, groups, size * bits // 8),
            scales=scales,
            zero_points=None if points is None else np.broadcast_to(points, (vocab, columns)),
            float_offsets=offsets,
            bits=bits,
            group_size=size,
            shape=(vocab, hidden),
        )

    def _gathered(self, value: str, ids: str) -> HalfArray:
        """Match numbers of each group `[vocab, groups]`, gathered for the rows `ids` and widened."""
        matcher = self._matcher
        cast = matcher.match(value, "Cast", {"to": FLOAT})
        wide = matcher.match(cast.inputs[0], "Unsqueeze", inputs=(2,))
        matcher.expect_ints(wide, wide.inputs[1], [-1])
        node = self._gather(wide.inputs[0], ids)
        numbers: HalfArray = matcher.array(node, node.inputs[0], np.float16, (None, None))
        return numbers

    def _gather(self, value: str, ids: str) -> NodeProto:
        node = self._matcher.match(value, "Gather", {"axis": 0}, inputs=(2,))
        if node.inputs[1] != ids:
            raise unsupported(node, f"looks up rows by another input than `{ids}`")
        return node

    # words ─┬─ Less 0 ─ Cast (sign) ─ Mul -2³¹ ─┐
    #        └─────────────────────────── Sub ───┴─ (rest) ─ Div 2^(bits·i) ─ minus 2^bits × the next ─ + sign ─▶ codes
    def _unpacked(self, value: str, ids: str) -> tuple[npt.NDArray[np.int32], int, NodeProto]:
        """Match the codes in the gathered words; return all words `[vocab, words]`, the bits and the lookup."""
        matcher = self._matcher
        total = matcher.match(value, "Add", inputs=(2,))
        difference = matcher.match(total.inputs[0], "Sub", inputs=(2,))
        top = matcher.match(total.inputs[1], "Mul", inputs=(2,))
        shifted = matcher.match(difference.inputs[0], "Div", inputs=(2,))
        above = matcher.match(difference.inputs[1], "Mul", inputs=(2,))
        following = matcher.match(above.inputs[0], "Div", inputs=(2,))
        per_word = int(matcher.array(shifted, shifted.inputs[1], np.int32, (None,)).size)
        if per_word not in {4, 8}:
            raise unsupported(shifted, f"unpacks {per_word} codes of a word")
        bits = 32 // per_word
        powers = [1 << (bits * index) for index in range(per_word)]
        last = per_word - 1
        constants: list[tuple[NodeProto, list[int]]] = [
            (shifted, powers),
            (following, [*powers[1:], 2**31 - 1]),
            (above, [1 << bits] * last + [0]),
            (top, [0] * last + [1 << (bits - 1)]),
        ]
        for node, values in constants:
            matcher.expect(node, node.inputs[1], np.array(values, np.int32))
        rests = [self._widened(node.inputs[0]) for node in (shifted, following)]
        rest = matcher.match(rests[0], "Sub", inputs=(2,))
        lowest = matcher.match(rest.inputs[1], "Mul", inputs=(2,))
        matcher.expect(lowest, lowest.inputs[1], np.array(-(2**31), np.int32))
        sign = matcher.match(lowest.inputs[0], "Cast", {"to": INT32})
        less = matcher.match(sign.inputs[0], "Less", inputs=(2,))
        matcher.expect(less, less.inputs[1], np.array(0, np.int32))
        if rests[1] != rests[0] or self._widened(top.inputs[0]) != lowest.inputs[0] or less.inputs[0] != rest.inputs[0]:
            raise unsupported(total, "unpacks several words")
        gather = self._gather(rest.inputs[0], ids)
        words: npt.NDArray[Any] = matcher.array(gather, gather.inputs[0], np.int32, (None, None))
        return words, bits, gather

    def _widened(self, value: str) -> str:
        node = self._matcher.match(value, "Unsqueeze", inputs=(2,))
        self._matcher.expect_ints(node, node.inputs[1], [-1])
        return node.inputs[0]
