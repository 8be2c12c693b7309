"""Products with quantized or float matrices in the `onnxruntime` dialect.

Quantized matrices are 4- or 8-bit `MatMulNBits`; the embedding is read by `GatherBlockQuantized`. Matrices that read
the same input are fused, because every call costs a fork and join of the threads.

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
from edgekit.export.quantization.float_rows import FloatRows
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
    """The initializer names of a written matrix.

    Attributes:
        weight: A float matrix `[in, out]`; None if it is quantized.
        packed: Inputs of `MatMulNBits`: weights, scales and, unless they are the middle code, zero points.
        shape: `(out, in)`.
        bits: Bits per code.
        size: Group size.
        offsets: The residual offsets that the zero points do not represent, `[groups, out]`; None if there are none.
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
        graph: The graph.
        weights: The model's weights.
        progress: Called with the name of each tensor once it is written.
        accuracy_level: Attribute of `MatMulNBits`: 4 rounds activations to 8 bits per block, which is several times
            faster; 1 computes in FP32.

    Attributes:
        metadata: The onnxruntime version that the embedding needs, if not all versions do.
    """

    def __init__(self, graph: Graph, weights: Weights, progress: Progress, accuracy_level: int) -> None:
        self._g = graph
        self._w = weights
        self._progress = progress
        self._accuracy_level = accuracy_level
        self._offsets = OffsetTerms(graph)
        self.metadata: dict[str, str] = {}

    # ids ─ GatherBlockQuantized ─▶ residual
    #
    # A tied head shares the embedding's bytes, which are stored once, and the table, which is the largest tensor,
    # is released before the layers.
    def embed(self, decoder: Decoder, ids: str) -> tuple[str, Stored | None]:
        """Embed tokens, float32 `[batch, sequence, hidden]`; also returns the head if it is tied to the embedding."""
        g, d, name, path = self._g, decoder, decoder.embedding.weight, "/model/embed_tokens"
        table, head = self._w.table(d.embedding), None
        if isinstance(table, FloatRows):
            rows = g.node("Gather", [g.stream(name, _F32, table.shape, table.parts()), ids], f"{path}/Gather", axis=0)
            if d.tied:
                head = self._transposed(name)
            self._progress(name)
            return rows, head
        zero_points, residual = self._zero_points(table, name)
        vocab, hidden = table.shape
        self.metadata = lookup_needs(table.bits, table.scales.shape[1], zero_points=bool(zero_points))
        packed = g.stream(f"{name}.qweight", _U8, (vocab, hidden * table.bits // 8), pack_rows(table.codes, table.bits))
        scales = g.constant(f"{name}.scales", table.scales)
        rows = g.node(
            "GatherBlockQuantized",
            [packed, ids, scales, *zero_points],
            f"{path}/GatherBlockQuantized",
            domain=_MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            block_size=table.group_size,
            bits=table.bits,
        )
        offsets = None
        if residual is not None:
            offsets = g.constant(f"{name}.offsets", residual)
            rows = self._embed_offsets(rows, ids, offsets, residual.shape[1], table.group_size)
        if d.tied:
            if offsets is not None:
                offsets = g.node("Transpose", [offsets], "/lm_head/offsets/Transpose", perm=[1, 0])
            shape = (vocab, table.scales.shape[1], table.group_size * table.bits // 8)
            alias = g.alias(f"{d.head.weight}.qweight", _U8, shape, packed)
            head = Stored(None, (alias, scales, *zero_points), table.shape, table.bits, table.group_size, offsets)
        self._progress(name)
        return rows, head

    def head(self, linear: Linear) -> Stored:
        """Write an untied output head."""
        table = self._w.table(linear)
        if isinstance(table, FloatRows):
            stored = self._transposed(self._g.stream(linear.weight, _F32, table.shape, table.parts()))
        else:
            stored = self._store(table, linear.weight)
        self._progress(linear.weight)
        return stored

    def _transposed(self, weight: str) -> Stored:
        """A float head stored as `[vocab, hidden]`: it is streamed by rows, so it cannot be transposed on the way."""
        return Stored(self._g.node("Transpose", [weight], "/lm_head/Transpose", perm=[1, 0]))

    # The residual offsets are added to the gathered rows:
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
        self, x: str, linears: Sequence[Linear], path: str, *, fused_name: str = "", output: str | None = None
    ) -> list[str]:
        """Apply matrices that read the same input: fused into one node if their grids agree, else one by one.

        Args:
            x: The input, float32 `[.., in]`.
            linears: The matrices; their biases are added too.
            path: Path of the nodes.
            fused_name: Name of the fused matrix.
            output: Name of the output, for a single matrix.

        Returns:
            One output per matrix, or a single one, concatenated along the last axis.

        Raises:
            ExportError: onnxruntime does not support a matrix's grid.
        """
        matrices = [self._w.matrix(linear) for linear in linears]
        biases = [self._w.vector(linear.bias_name) if linear.bias else None for linear in linears]
        if len(linears) == 1:
            outputs = [self._matmul(x, matrices[0], linears[0].weight, path, bias=biases[0], output=output)]
        elif (fused := _fuse(matrices)) is not None:
            bias = None
            if any(part is not None for part in biases):
                bias = np.concatenate(
                    [
                        np.zeros(linear.out_features, np.float32) if part is None else part
                        for linear, part in zip(linears, biases, strict=True)
                    ]
                )
            prefix = linears[0].name.rpartition(".")[0]
            outputs = [self._matmul(x, fused, f"{prefix}.{fused_name}.weight", f"{path}/{fused_name}", bias=bias)]
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
    # Zero points are integers: the residual of other offsets (GGUF Q4_1, MLX) is added separately, see OffsetTerms.
    def _matmul(
        self, x: str, matrix: Matrix, name: str, path: str, *, bias: FloatArray | None, output: str | None = None
    ) -> str:
        bias_name = None if bias is None else self._g.constant(f"{name.removesuffix('.weight')}.bias", bias)
        return self.apply(x, self._store(matrix, name), path, bias=bias_name, output=output)

    def _store(self, matrix: Matrix, name: str) -> Stored:
        g = self._g
        if not isinstance(matrix, GroupedTensor):
            return Stored(g.constant(name, matrix.T))
        zero_points, residual = self._zero_points(matrix, name)
        shape = (matrix.shape[0], matrix.scales.shape[1], matrix.group_size * matrix.bits // 8)
        packed = g.stream(f"{name}.qweight", _U8, shape, pack_rows(matrix.codes, matrix.bits))
        inputs = (packed, g.constant(f"{name}.scales", matrix.scales), *zero_points)
        offsets = None if residual is None else g.constant(f"{name}.offsets", residual.T)
        return Stored(None, inputs, matrix.shape, matrix.bits, matrix.group_size, offsets)

    def apply(self, x: str, stored: Stored, path: str, *, bias: str | None = None, output: str | None = None) -> str:
        """Multiply by a written matrix."""
        g = self._g
        if stored.weight is not None:
            product = g.node("MatMul", [x, stored.weight], f"{path}/MatMul", output=None if bias else output)
            return product if bias is None else g.node("Add", [product, bias], f"{path}/Add", output=output)
        inputs = [x, *stored.packed]
        if bias is not None:
            # Inputs 3 and 4 are the zero points and the group indices (g_idx).
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

    def _zero_points(self, tensor: GroupedTensor, name: str) -> tuple[list[str], FloatArray | None]:
        """Return the zero points as an input (absent if all are the middle code, the default), and residual offsets."""
        size = tensor.group_size
        if tensor.bits not in {4, 8} or size < 16 or size & (size - 1):
            raise ExportError(
                f"`{name}` has {tensor.bits}-bit codes in groups of {size}, which onnxruntime does not support",
                hint="supported: 4 or 8 bits, in groups of 16, 32, 64 or 128",
            )
        kind = offset_kind(tensor)
        if kind is Offset.SYMMETRIC:
            return [], None
        zero_points, residual = nearest_zero_points(tensor)
        rows, groups = zero_points.shape
        if tensor.bits == 4:
            if groups % 2:
                zero_points = np.concatenate([zero_points, np.zeros((rows, 1), np.uint8)], axis=1)
            zero_points = nibbles(zero_points)
        return [self._g.constant(f"{name}.zero_points", zero_points)], residual if kind is Offset.FLOAT else None

    def _ints(self, name: str, values: list[int]) -> str:
        return self._g.constant(name, np.array(values, np.int64))


def _fuse(matrices: Sequence[Matrix]) -> Matrix | None:
    """Concatenate matrices along their outputs, or return None if their grids differ."""
    if all(isinstance(matrix, np.ndarray) for matrix in matrices):
        return np.concatenate([matrix for matrix in matrices if isinstance(matrix, np.ndarray)])
    grouped = [matrix for matrix in matrices if isinstance(matrix, GroupedTensor)]
    same = len({(matrix.bits, matrix.group_size, offset_kind(matrix)) for matrix in grouped}) == 1
    return concatenate(grouped) if same and len(grouped) == len(matrices) else None
