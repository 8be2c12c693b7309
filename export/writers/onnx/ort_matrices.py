"""Matrices of the `onnxruntime` dialect: how a product with quantized or float weights is said in its operators.

Weights are 4- or 8-bit `MatMulNBits`; the token table is read by `GatherBlockQuantized`. Matrices that read the same
input are joined, because every call costs a fork and a join of the threads. It knows no layer.

Source of the operators: onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.float_rows import FloatRows
from edgekit.export.quantization.grid import GroupedTensor, Offset
from edgekit.export.writers.base import Progress, Weights
from edgekit.export.writers.onnx.graph import Graph
from edgekit.export.writers.onnx.offsets import OffsetTerms
from edgekit.export.writers.onnx.packing import (
    concatenate,
    lookup_needs,
    nearest_zero_points,
    nibbles,
    offset_kind,
    pack_rows,
)

__all__ = ["Matrices", "Stored"]

_MICROSOFT = "com.microsoft"
_U8, _F32 = TensorProto.UINT8, TensorProto.FLOAT

FloatArray = npt.NDArray[np.float32]
Matrix = GroupedTensor | FloatArray


@dataclass(frozen=True, slots=True)
class Stored:
    """A matrix whose bytes are written already: what of it the graph can name.

    Attributes:
        weight: A float matrix `[in, out]`; None where it is quantized.
        packed: Weights, scales and, unless they are the middle, zero points, as `MatMulNBits` takes them.
        shape: `(out, in)`.
        bits: Bits per code.
        size: Inputs in a group.
        offsets: What the zero points leave of the offsets, `[groups, out]`; None where that is nothing.
    """

    weight: str | None
    packed: tuple[str, ...] = ()
    shape: tuple[int, int] = (0, 0)
    bits: int = 0
    size: int = 0
    offsets: str | None = None


class Matrices:
    """Writes matrices and the nodes that multiply by them.

    Args:
        graph: Where to.
        weights: The numbers.
        progress: Called with the name of each tensor once it is written.
        accuracy_level: Of `MatMulNBits`: 4 rounds activations to 8 bits per block, which is several times faster;
            1 computes in FP32.

    Attributes:
        needs: Metadata: the onnxruntime that the token table needs.
    """

    def __init__(self, graph: Graph, weights: Weights, progress: Progress, accuracy_level: int) -> None:
        self._g = graph
        self._w = weights
        self._progress = progress
        self._accuracy_level = accuracy_level
        self._offsets = OffsetTerms(graph)
        self.needs: dict[str, str] = {}

    # ids ─ GatherBlockQuantized ─▶ residual
    #
    # A tied head reads the embedding's own bytes: they are stored once, and the table, which is the largest tensor,
    # is forgotten before the layers.
    def embed(self, decoder: Decoder, ids: str) -> tuple[str, Stored | None]:
        """Return the rows `ids` of the token table, float32 `[batch, sequence, hidden]`, and where tied the head."""
        g, d, name, path = self._g, decoder, decoder.embedding.weight, "/model/embed_tokens"
        table, head = self._w.table(d.embedding), None
        if isinstance(table, FloatRows):
            rows = g.node("Gather", [g.stream(name, _F32, table.shape, table.parts()), ids], f"{path}/Gather", axis=0)
            if d.tied:
                head = self._transposed(name)
            self._progress(name)
            return rows, head
        points, rest = self._points(table, name)
        vocab, hidden = table.shape
        self.needs = lookup_needs(table.bits, table.scales.shape[1], zero_points=bool(points))
        packed = g.stream(f"{name}.qweight", _U8, (vocab, hidden * table.bits // 8), pack_rows(table.codes, table.bits))
        scales = g.constant(f"{name}.scales", table.scales)
        rows = g.node(
            "GatherBlockQuantized",
            [packed, ids, scales, *points],
            f"{path}/GatherBlockQuantized",
            domain=_MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            block_size=table.group_size,
            bits=table.bits,
        )
        offsets = None
        if rest is not None:
            offsets = g.constant(f"{name}.offsets", rest)
            rows = self._embed_offsets(rows, ids, offsets, rest.shape[1], table.group_size)
        if d.tied:
            if offsets is not None:
                offsets = g.node("Transpose", [offsets], "/lm_head/offsets/Transpose", perm=[1, 0])
            shape = (vocab, table.scales.shape[1], table.group_size * table.bits // 8)
            again = g.alias(f"{d.head.weight}.qweight", _U8, shape, packed)
            head = Stored(None, (again, scales, *points), table.shape, table.bits, table.group_size, offsets)
        self._progress(name)
        return rows, head

    def head(self, linear: Linear) -> Stored:
        """Write an output head of its own."""
        table = self._w.table(linear)
        if isinstance(table, FloatRows):
            stored = self._transposed(self._g.stream(linear.weight, _F32, table.shape, table.parts()))
        else:
            stored = self._store(table, linear.weight)
        self._progress(linear.weight)
        return stored

    def _transposed(self, weight: str) -> Stored:
        """A float head `[vocab, hidden]` as it is stored: no pass over its rows could turn it."""
        return Stored(self._g.node("Transpose", [weight], "/lm_head/Transpose", perm=[1, 0]))

    # What the zero point leaves of an offset is added to the gathered rows:
    #
    # ids ─ Gather(offsets) ─ Unsqueeze ─┐
    # rows ─ Reshape [.., groups, size] ─ Add ─ Reshape ─▶
    def _embed_offsets(self, rows: str, ids: str, offsets: str, groups: int, size: int) -> str:
        g, path = self._g, "/model/embed_tokens/offsets"
        offsets = g.node("Gather", [offsets, ids], f"{path}/Gather", axis=0)
        offsets = g.node("Unsqueeze", [offsets, self._ints("axis.last", [-1])], f"{path}/Unsqueeze")
        shape = self._ints("shape.embedding_groups", [0, 0, groups, size])
        rows = g.node("Add", [g.node("Reshape", [rows, shape], f"{path}/split/Reshape"), offsets], f"{path}/Add")
        return g.node("Reshape", [rows, self._ints("shape.hidden", [0, 0, groups * size])], f"{path}/Reshape")

    def linears(
        self, x: str, linears: Sequence[Linear], path: str, *, joined: str = "", output: str | None = None
    ) -> list[str]:
        """Apply matrices that read one input: by one node called `joined` if their grids agree, else one by one.

        Args:
            x: The input, float32 `[.., in]`.
            linears: Which; their biases are added too.
            path: Of the nodes.
            joined: What several are called together.
            output: Name of the only output.

        Returns:
            One output per matrix, or one for all, joined along the last axis.

        Raises:
            ExportError: A matrix is on a grid that onnxruntime does not take.
        """
        matrices = [self._w.matrix(linear) for linear in linears]
        biases = [self._w.vector(linear.bias_name) if linear.bias else None for linear in linears]
        if len(linears) == 1:
            outputs = [self._matmul(x, matrices[0], linears[0].weight, path, bias=biases[0], output=output)]
        elif (whole := _join(matrices)) is not None:
            bias = None
            if any(part is not None for part in biases):
                bias = np.concatenate(
                    [
                        np.zeros(linear.out_features, np.float32) if part is None else part
                        for linear, part in zip(linears, biases, strict=True)
                    ]
                )
            prefix = linears[0].name.rpartition(".")[0]
            outputs = [self._matmul(x, whole, f"{prefix}.{joined}.weight", f"{path}/{joined}", bias=bias)]
        else:
            outputs = [
                self._matmul(x, matrix, linear.weight, f"{path}/{linear.name.rpartition('.')[2]}", bias=bias)
                for linear, matrix, bias in zip(linears, matrices, biases, strict=True)
            ]
        for linear in linears:
            self._progress(linear.weight)
            if linear.bias:
                self._progress(linear.bias_name)
        return outputs

    # x ─┬─ MatMulNBits (bias within) ────────────────────────────── (Add) ─▶
    #    └─ (sums of x over each group) ─ (MatMul offsets [groups, out]) ─┘
    #
    # A zero point is an integer: what it leaves of an offset (GGUF Q4_1, MLX) is added apart, see OffsetTerms.
    def _matmul(
        self, x: str, matrix: Matrix, name: str, path: str, *, bias: FloatArray | None, output: str | None = None
    ) -> str:
        bias_name = None if bias is None else self._g.constant(f"{name.removesuffix('.weight')}.bias", bias)
        return self.apply(x, self._store(matrix, name), path, bias=bias_name, output=output)

    def _store(self, matrix: Matrix, name: str) -> Stored:
        g = self._g
        if not isinstance(matrix, GroupedTensor):
            return Stored(g.constant(name, matrix.T))
        points, rest = self._points(matrix, name)
        shape = (matrix.shape[0], matrix.scales.shape[1], matrix.group_size * matrix.bits // 8)
        packed = g.stream(f"{name}.qweight", _U8, shape, pack_rows(matrix.codes, matrix.bits))
        inputs = (packed, g.constant(f"{name}.scales", matrix.scales), *points)
        offsets = None if rest is None else g.constant(f"{name}.offsets", rest.T)
        return Stored(None, inputs, matrix.shape, matrix.bits, matrix.group_size, offsets)

    def apply(self, x: str, stored: Stored, path: str, *, bias: str | None = None, output: str | None = None) -> str:
        """Multiply by a matrix whose bytes are written already."""
        g = self._g
        if stored.weight is not None:
            product = g.node("MatMul", [x, stored.weight], f"{path}/MatMul", output=None if bias else output)
            return product if bias is None else g.node("Add", [product, bias], f"{path}/Add", output=output)
        inputs = [x, *stored.packed]
        if bias is not None:
            # Inputs 3 and 4 are the zero points and an index of groups.
            inputs += [""] * (5 - len(inputs)) + [bias]
        columns, inner = stored.shape
        product = g.node(
            "MatMulNBits",
            inputs,
            f"{path}/MatMulNBits",
            output=output if stored.offsets is None else None,
            domain=_MICROSOFT,
            K=inner,
            N=columns,
            bits=stored.bits,
            block_size=stored.size,
            accuracy_level=self._accuracy_level,
        )
        if stored.offsets is None:
            return product
        term = self._offsets.term(x, stored.offsets, inner // stored.size, stored.size, path)
        return g.node("Add", [product, term], f"{path}/offsets/Add", output=output)

    def _points(self, tensor: GroupedTensor, name: str) -> tuple[list[str], FloatArray | None]:
        """The zero points as an input (absent where they are the middle, which is the default), and what they leave."""
        size = tensor.group_size
        if tensor.bits not in {4, 8} or size < 16 or size & (size - 1):
            raise ExportError(
                f"`{name}` has {tensor.bits}-bit codes in groups of {size}, which onnxruntime does not take",
                hint="it takes 4 or 8 bits, in groups of 16, 32, 64 or 128",
            )
        kind = offset_kind(tensor)
        if kind is Offset.SYMMETRIC:
            return [], None
        points, rest = nearest_zero_points(tensor)
        rows, groups = points.shape
        if tensor.bits == 4:
            if groups % 2:
                points = np.concatenate([points, np.zeros((rows, 1), np.uint8)], axis=1)
            points = nibbles(points)
        return [self._g.constant(f"{name}.zero_points", points)], rest if kind is Offset.FLOAT else None

    def _ints(self, name: str, values: list[int]) -> str:
        return self._g.constant(name, np.array(values, np.int64))


def _join(matrices: Sequence[Matrix]) -> Matrix | None:
    """Stack matrices along their outputs, if one node can hold them all."""
    if all(isinstance(matrix, np.ndarray) for matrix in matrices):
        return np.concatenate([matrix for matrix in matrices if isinstance(matrix, np.ndarray)])
    grouped = [matrix for matrix in matrices if isinstance(matrix, GroupedTensor)]
    same = len({(matrix.bits, matrix.group_size, offset_kind(matrix)) for matrix in grouped}) == 1
    return concatenate(grouped) if same and len(grouped) == len(matrices) else None
