"""Matches quantized matrices: the nodes that multiply by them or look up rows in them.

The counterpart of `edgekit.export.writers.onnx.ort_matrices`, which writes and draws the patterns.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgekit.runners.cpu.model import Bytes, FloatArray, Matrix
from edgekit.runners.cpu.onnx_reader.matcher import MICROSOFT, Attributes, GraphMatcher, integer, unsupported
from edgekit.runners.cpu.onnx_reader.onnx_proto import NodeProto

__all__ = ["Matrices", "check_grid"]

# `accuracy_level` of MatMulNBits: activations are quantized to 8 bits per group, as in the kernels.
_INT8_ACTIVATIONS = 4


class Matrices:
    """Matches matrices.

    Args:
        matcher: The matcher of the graph.
    """

    def __init__(self, matcher: GraphMatcher) -> None:
        self._matcher = matcher

    # x ─┬─ MatMulNBits ──────────────────────── (Add) ─▶
    #    └─ (sums of x over each group ─ MatMul) ─┘
    def linear(self, value: str) -> tuple[str, Matrix]:
        """Match a product with a quantized matrix; return its input and the matrix.

        Raises:
            Unsupported: The value is not such a product.
            BundleError: Bytes of the matrix are missing.
        """
        matcher, term = self._matcher, None
        producer = matcher.producer(value)
        if producer is not None and (producer.op_type, producer.domain) == ("Add", ""):
            value, term = matcher.match(value, "Add", inputs=(2,)).inputs
        attributes: Attributes = {
            "K": int,
            "N": int,
            "bits": int,
            "block_size": int,
            "accuracy_level": _INT8_ACTIVATIONS,
        }
        node = matcher.match(value, "MatMulNBits", attributes, domain=MICROSOFT, inputs=(3, 4, 5, 6))
        x, packed, scales, points, index, bias = (*node.inputs, "", "", "")[:6]
        if not x or index:
            raise unsupported(node, "has a group index, or no input")
        shape = integer(node, "N"), integer(node, "K")
        bits, size, groups = _grid(node, shape)
        codes = matcher.array(node, packed, np.uint8, (shape[0], groups, size * bits // 8))
        matrix = self._matrix(node, codes, (packed, scales, points), shape, bits)
        if bias:
            matrix = replace(matrix, bias=matcher.array(node, bias, np.float32, shape[:1]))
        if term is not None:
            matrix = replace(matrix, float_offsets=self._float_offsets(term, x, matrix))
        return x, matrix

    def _float_offsets(self, term: str, x: str, matrix: Matrix) -> FloatArray:
        """Match the offsets, which are multiplied by the sums of the inputs over each group."""
        matcher, (out, groups) = self._matcher, matrix.scales.shape
        node = matcher.match(term, "MatMul", inputs=(2,))
        sums = matcher.match(node.inputs[0], "ReduceSum", {"keepdims": 0}, inputs=(2,))
        matcher.expect_ints(sums, sums.inputs[1], [-1])
        split = matcher.match(sums.inputs[0], "Reshape", inputs=(2,))
        matcher.expect_ints(split, split.inputs[1], [0, 0, groups, matrix.group_size])
        if split.inputs[0] != x:
            raise unsupported(split, "reads another input than the matrix that the offsets belong to")
        if matcher.producer(node.inputs[1]) is None:
            offsets: FloatArray = matcher.array(node, node.inputs[1], np.float32, (groups, out)).T
        else:
            # A tied head transposes the offsets of the embedding.
            transpose = matcher.match(node.inputs[1], "Transpose", {"perm": (1, 0)})
            offsets = matcher.array(transpose, transpose.inputs[0], np.float32, (out, groups))
        return offsets

    # ids ─┬─ GatherBlockQuantized ─ (Reshape [.., groups, size] ─ Add ─ Reshape) ─▶
    #      └─ (Gather(offsets) ─ Unsqueeze) ────────────────────────┘
    def lookup(self, value: str, ids: str) -> Matrix:
        """Match a lookup of rows `ids` in a quantized matrix; return the matrix.

        Raises:
            Unsupported: The value is not such a lookup.
            BundleError: Bytes of the matrix are missing.
        """
        matcher, gather = self._matcher, None
        producer = matcher.producer(value)
        if producer is not None and (producer.op_type, producer.domain) == ("Reshape", ""):
            joined = matcher.match(value, "Reshape", inputs=(2,))
            added = matcher.match(joined.inputs[0], "Add", inputs=(2,))
            split = matcher.match(added.inputs[0], "Reshape", inputs=(2,))
            expanded = matcher.match(added.inputs[1], "Unsqueeze", inputs=(2,))
            gather = matcher.match(expanded.inputs[0], "Gather", {"axis": 0}, inputs=(2,))
            value = split.inputs[0]
        attributes: Attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": int, "bits": int}
        node = matcher.match(value, "GatherBlockQuantized", attributes, domain=MICROSOFT, inputs=(3, 4))
        packed, indices, scales, points = (*node.inputs, "")[:4]
        if indices != ids:
            raise unsupported(node, f"looks up rows by another input than `{ids}`")
        flat = matcher.array(node, packed, np.uint8, (None, None))
        bits = integer(node, "bits")
        if bits not in {4, 8}:
            raise unsupported(node, f"has {bits}-bit codes")
        shape = flat.shape[0], flat.shape[1] * 8 // bits
        bits, size, groups = _grid(node, shape)
        codes = flat.reshape(shape[0], groups, size * bits // 8)
        matrix = self._matrix(node, codes, (packed, scales, points), shape, bits)
        if gather is None:
            return matrix
        matcher.expect_ints(joined, joined.inputs[1], [0, 0, shape[1]])
        matcher.expect_ints(split, split.inputs[1], [0, 0, groups, size])
        matcher.expect_ints(expanded, expanded.inputs[1], [-1])
        if gather.inputs[1] != ids:
            raise unsupported(gather, f"looks up rows by another input than `{ids}`")
        return replace(matrix, float_offsets=matcher.array(gather, gather.inputs[0], np.float32, (shape[0], groups)))

    def _matrix(
        self, node: NodeProto, codes: Bytes, names: tuple[str, str, str], shape: tuple[int, int], bits: int
    ) -> Matrix:
        out, groups, width = codes.shape
        packed, scales, points = names
        stored: npt.NDArray[np.uint8] | None = None
        if points:
            columns = groups if bits == 8 else (groups + 1) // 2
            stored = self._matcher.array(node, points, np.uint8, (out, columns))
        return Matrix(
            name=packed.removesuffix(".qweight"),
            codes=codes,
            scales=self._matcher.array(node, scales, np.float32, (out, groups)),
            zero_points=stored,
            float_offsets=None,
            bits=bits,
            group_size=width * 8 // bits,
            shape=shape,
        )


def check_grid(node: NodeProto, bits: int, size: int, shape: tuple[int, int]) -> int:
    """Check that the kernels support a grid; return the number of groups of a row.

    Raises:
        Unsupported: They do not.
    """
    if bits not in {4, 8} or size < 16 or size & (size - 1) or min(shape) < 1 or shape[1] % size:
        raise unsupported(node, f"has {bits}-bit codes in groups of {size}, for {shape[1]} inputs")
    return shape[1] // size


def _grid(node: NodeProto, shape: tuple[int, int]) -> tuple[int, int, int]:
    """Return bits, group size and number of groups."""
    bits, size = integer(node, "bits"), integer(node, "block_size")
    return bits, size, check_grid(node, bits, size, shape)
