"""Quantized matrices out of the nodes that multiply by them or look rows up in them.

The counterpart of `edgekit.export.writers.onnx.ort_matrices`, which draws the patterns. It knows no layer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgekit.runners.cpu.messages import Node
from edgekit.runners.cpu.model import Bytes, FloatArray, Matrix
from edgekit.runners.cpu.wiring import MICROSOFT, Attributes, Wiring, integer, refused

__all__ = ["Matrices"]

# Of MatMulNBits: activations are rounded to 8 bits per group, which is what the kernels do.
_ROUNDED = 4


class Matrices:
    """Reads matrices.

    Args:
        wiring: Of the graph.
    """

    def __init__(self, wiring: Wiring) -> None:
        self._w = wiring

    # x ─┬─ MatMulNBits ──────────────────────── (Add) ─▶
    #    └─ (sums of x over each group ─ MatMul) ─┘
    def linear(self, value: str) -> tuple[str, Matrix]:
        """Return the input and the matrix of the product that a value is.

        Raises:
            Unsupported: The value is no product with a quantized matrix.
            BundleError: Bytes of the matrix are not there.
        """
        w, term = self._w, None
        maker = w.maker(value)
        if maker is not None and (maker.op_type, maker.domain) == ("Add", ""):
            value, term = w.take(value, "Add", inputs=(2,)).inputs
        attributes: Attributes = {"K": int, "N": int, "bits": int, "block_size": int, "accuracy_level": _ROUNDED}
        node = w.take(value, "MatMulNBits", attributes, domain=MICROSOFT, inputs=(3, 4, 5, 6))
        x, packed, scales, points, index, bias = (*node.inputs, "", "", "")[:6]
        if not x or index:
            raise refused(node, "has an index of groups, or no input")
        shape = integer(node, "N"), integer(node, "K")
        bits, size, groups = _grid(node, shape)
        codes = w.array(node, packed, np.uint8, (shape[0], groups, size * bits // 8))
        matrix = self._matrix(node, codes, (packed, scales, points), shape, bits)
        if bias:
            matrix = replace(matrix, bias=w.array(node, bias, np.float32, shape[:1]))
        if term is not None:
            matrix = replace(matrix, rest=self._rest(term, x, matrix))
        return x, matrix

    def _rest(self, term: str, x: str, matrix: Matrix) -> FloatArray:
        """The offsets that sums of the inputs are multiplied by."""
        w, (out, groups) = self._w, matrix.scales.shape
        node = w.take(term, "MatMul", inputs=(2,))
        sums = w.take(node.inputs[0], "ReduceSum", {"keepdims": 0}, inputs=(2,))
        w.expect_ints(sums, sums.inputs[1], [-1])
        split = w.take(sums.inputs[0], "Reshape", inputs=(2,))
        w.expect_ints(split, split.inputs[1], [0, 0, groups, matrix.group_size])
        if split.inputs[0] != x:
            raise refused(split, "reads another input than the matrix whose offsets it is for")
        if w.maker(node.inputs[1]) is None:
            rest: FloatArray = w.array(node, node.inputs[1], np.float32, (groups, out)).T
        else:
            # A head that is the embedding turns the embedding's.
            turn = w.take(node.inputs[1], "Transpose", {"perm": (1, 0)})
            rest = w.array(turn, turn.inputs[0], np.float32, (out, groups))
        return rest

    # ids ─┬─ GatherBlockQuantized ─ (Reshape [.., groups, size] ─ Add ─ Reshape) ─▶
    #      └─ (Gather(offsets) ─ Unsqueeze) ────────────────────────┘
    def table(self, value: str, ids: str) -> Matrix:
        """Return the matrix whose rows `ids` a value is.

        Raises:
            Unsupported: The value is not rows of a quantized matrix.
            BundleError: Bytes of the matrix are not there.
        """
        w, rest = self._w, None
        maker = w.maker(value)
        if maker is not None and (maker.op_type, maker.domain) == ("Reshape", ""):
            joined = w.take(value, "Reshape", inputs=(2,))
            added = w.take(joined.inputs[0], "Add", inputs=(2,))
            split = w.take(added.inputs[0], "Reshape", inputs=(2,))
            wide = w.take(added.inputs[1], "Unsqueeze", inputs=(2,))
            rest = w.take(wide.inputs[0], "Gather", {"axis": 0}, inputs=(2,))
            value = split.inputs[0]
        attributes: Attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": int, "bits": int}
        node = w.take(value, "GatherBlockQuantized", attributes, domain=MICROSOFT, inputs=(3, 4))
        packed, indices, scales, points = (*node.inputs, "")[:4]
        if indices != ids:
            raise refused(node, f"looks up something else than `{ids}`")
        flat = w.array(node, packed, np.uint8, (None, None))
        bits = integer(node, "bits")
        if bits not in {4, 8}:
            raise refused(node, f"has {bits}-bit codes")
        shape = flat.shape[0], flat.shape[1] * 8 // bits
        bits, size, groups = _grid(node, shape)
        codes = flat.reshape(shape[0], groups, size * bits // 8)
        matrix = self._matrix(node, codes, (packed, scales, points), shape, bits)
        if rest is None:
            return matrix
        w.expect_ints(joined, joined.inputs[1], [0, 0, shape[1]])
        w.expect_ints(split, split.inputs[1], [0, 0, groups, size])
        w.expect_ints(wide, wide.inputs[1], [-1])
        if rest.inputs[1] != ids:
            raise refused(rest, f"looks up something else than `{ids}`")
        return replace(matrix, rest=w.array(rest, rest.inputs[0], np.float32, (shape[0], groups)))

    def _matrix(
        self, node: Node, codes: Bytes, names: tuple[str, str, str], shape: tuple[int, int], bits: int
    ) -> Matrix:
        out, groups, width = codes.shape
        packed, scales, points = names
        stored: npt.NDArray[np.uint8] | None = None
        if points:
            columns = groups if bits == 8 else (groups + 1) // 2
            stored = self._w.array(node, points, np.uint8, (out, columns))
        return Matrix(
            name=packed.removesuffix(".qweight"),
            codes=codes,
            scales=self._w.array(node, scales, np.float32, (out, groups)),
            zero_points=stored,
            rest=None,
            bits=bits,
            group_size=width * 8 // bits,
            shape=shape,
        )


def _grid(node: Node, shape: tuple[int, int]) -> tuple[int, int, int]:
    """Bits, inputs in a group, and groups."""
    bits, size = integer(node, "bits"), integer(node, "block_size")
    if bits not in {4, 8} or size < 16 or size & (size - 1) or min(shape) < 1 or shape[1] % size:
        raise refused(node, f"has {bits}-bit codes in groups of {size}, for {shape[1]} inputs")
    return bits, size, shape[1] // size
