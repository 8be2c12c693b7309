"""Weight matrices and the embedding in both TensorRT dialects.

A quantized matrix is INT4 `[in, out]` with a block-wise `DequantizeLinear` along axis 0 and no transpose before the
product, so TensorRT keeps it in INT4 up to there. Scales and float weights are FP16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.quantization.float_rows import FloatRows
from edgekit.export.quantization.grid import GroupedTensor
from edgekit.export.writers.base import Progress, Weights
from edgekit.export.writers.onnx.graph import Graph
from edgekit.export.writers.onnx.offsets import OffsetTerms
from edgekit.export.writers.onnx.packed_table import gather_packed
from edgekit.export.writers.onnx.packing import int4_columns, int4_planes

__all__ = ["Floats", "Matrices", "Stored"]

FloatArray = npt.NDArray[np.float32]

Floats = npt.NDArray[np.float16 | np.float32]
"""Numbers in the writer's `dtype`: float16, or float32 for parity tests."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The initializer names of a written matrix.

    Attributes:
        weight: A float matrix `[in, out]`; None if it is quantized.
        planes: Name prefix, INT4 weights and scales of each plane.
        offsets: The residual offsets that the planes do not represent, `[groups, out]`; None if there are none.
        groups: Number of groups along the inputs.
        size: Group size.
    """

    weight: str | None
    planes: tuple[tuple[str, str, str], ...] = ()
    offsets: str | None = None
    groups: int = 0
    size: int = 0


class Matrices:
    """Writes matrices into a graph and multiplies by them.

    Args:
        graph: The graph.
        weights: The model's weights.
        progress: Called with the name of each tensor once it is written.
        dtype: Dtype of activations, float weights and scales: float16, or float32 for parity tests.
    """

    def __init__(
        self, graph: Graph, weights: Weights, progress: Progress, dtype: type[np.float16 | np.float32] = np.float16
    ) -> None:
        self._g = graph
        self._w = weights
        self._progress = progress
        self._np = dtype
        self._offsets = OffsetTerms(graph)
        self._stored: dict[str, Stored] = {}

    # ids ─ Gather ─ Cast ─ (Mul scale) ─▶ fp32 [batch, sequence, hidden]
    #
    # A tied head is stored here too, so that the table, which is the largest tensor, is released before the layers.
    # A float table is shared by both: TensorRT multiplies by a transposed constant without copying it. A quantized one
    # is written a second time, because the head needs INT4 [hidden, vocab] and the embedding int32 rows.
    def embed(self, ids: str, decoder: Decoder) -> tuple[str, Stored | None]:
        """Embed tokens, int64 `[batch, sequence]`; also returns the head if it is tied to the embedding."""
        g, name, path = self._g, decoder.embedding.weight, "/model/embed_tokens"
        table, head = self._w.table(decoder.embedding), None
        if isinstance(table, GroupedTensor):
            rows = gather_packed(g, ids, table, name=name, path=path, cast=self.cast)
            if decoder.tied:
                head = self.store(table, decoder.head.weight)
        else:
            weight = self._rows(name, table)
            rows = g.node("Gather", [weight, ids], f"{path}/Gather", axis=0)
            rows = g.node("Cast", [rows], f"{path}/Cast", to=TensorProto.FLOAT)
            if decoder.tied:
                head = self._transposed(weight)
        self._progress(name)
        if decoder.embedding_scale is not None:
            scale = g.constant("embedding_scale", np.array(decoder.embedding_scale, np.float32))
            rows = g.node("Mul", [rows, scale], f"{path}/scale/Mul")
        return rows, head

    def store_all(self, decoder: Decoder) -> None:
        """Write the matrices in their fastest reading order, before the nodes that multiply by them."""
        for linear in self._w.order:
            if linear == decoder.head:
                self._stored[linear.weight] = self._write_head(linear)
            elif linear != decoder.embedding:
                self._stored[linear.weight] = self._write(linear)

    def head(self, linear: Linear) -> Stored:
        """Return an untied output head, writing it if necessary."""
        return self._stored.pop(linear.weight, None) or self._write_head(linear)

    def _write(self, linear: Linear) -> Stored:
        stored = self.store(self._w.matrix(linear), linear.weight)
        self._progress(linear.weight)
        return stored

    def _write_head(self, linear: Linear) -> Stored:
        table = self._w.table(linear)
        if isinstance(table, GroupedTensor):
            stored = self.store(table, linear.weight)
        else:
            stored = self._transposed(self._rows(linear.weight, table))
        self._progress(linear.weight)
        return stored

    def _rows(self, name: str, table: FloatRows) -> str:
        dtype = TensorProto.FLOAT16 if self._np is np.float16 else TensorProto.FLOAT
        return self._g.stream(name, dtype, table.shape, (self.cast(part) for part in table.parts()))

    def _transposed(self, weight: str) -> Stored:
        """A float head stored as `[vocab, hidden]`: it is streamed by rows, so it cannot be transposed on the way."""
        return Stored(self._g.node("Transpose", [weight], "/lm_head/Transpose", perm=[1, 0]))

    def linear(self, x: str, linear: Linear, path: str) -> str:
        """Multiply by the weight of a layer and add its bias."""
        stored = self._stored.pop(linear.weight, None) or self._write(linear)
        out = self.apply(x, stored, path)
        if linear.bias:
            bias = self._g.constant(linear.bias_name, self.cast(self._w.vector(linear.bias_name)))
            self._progress(linear.bias_name)
            out = self._g.node("Add", [out, bias], f"{path}/Add")
        return out

    def store(self, matrix: GroupedTensor | FloatArray, name: str) -> Stored:
        """Write a matrix `[out, in]` under a name."""
        g = self._g
        if not isinstance(matrix, GroupedTensor):
            return Stored(g.constant(name, self.cast(matrix).T))
        stored = []
        planes, residual = int4_planes(matrix)
        columns, inner = matrix.shape
        for plane, label in zip(planes, ("", "low_"), strict=False):
            parts = int4_columns(plane.codes)
            weight = g.stream(f"{name}.{label}qweight", TensorProto.INT4, (inner, columns), parts)
            # TensorRT 10.3's parser rejects scales that are not positive. Zero (often a scale too small for FP16)
            # becomes the smallest positive number, which changes no weight by more than 5e-7.
            positive = np.maximum(self.cast(plane.scales), self._np(2.0**-24))
            stored.append((label, weight, g.constant(f"{name}.{label}scales", positive.T)))
        offsets = None if residual is None else g.constant(f"{name}.offsets", self.cast(residual).T)
        return Stored(None, tuple(stored), offsets, matrix.scales.shape[1], matrix.group_size)

    # weight (INT4 [in, out]) ─ DequantizeLinear(axis=0, block_size) ─┐
    # x ─┬──────────────────────────────────────────────────── MatMul ┴─ (Add) ─ (Add bias) ─▶
    #    └─ (sums of x over each group) ─ (MatMul offsets [groups, out]) ─┘
    #
    # TensorRT's INT4 has no offsets: those of a grid (GGUF Q4_1, AWQ) are added separately, see OffsetTerms. An 8-bit
    # matrix becomes two INT4 planes, the high and the low nibbles of its codes.
    def apply(self, x: str, stored: Stored, path: str) -> str:
        """Multiply by a written matrix."""
        g = self._g
        if stored.weight is not None:
            return g.node("MatMul", [x, stored.weight], f"{path}/MatMul")
        terms = []
        for label, weight, scales in stored.planes:
            name = f"{path}/{label}DequantizeLinear"
            dequantized = g.node("DequantizeLinear", [weight, scales], name, axis=0, block_size=stored.size)
            terms.append(g.node("MatMul", [x, dequantized], f"{path}/{label}MatMul"))
        if stored.offsets is not None:
            terms.append(self._offsets.term(x, stored.offsets, stored.groups, stored.size, path))
        total = terms[0]
        for i, term in enumerate(terms[1:]):
            total = g.node("Add", [total, term], f"{path}/sum{i}/Add")
        return total

    def cast(self, values: FloatArray) -> Floats:
        """Convert numbers to `dtype`.

        Raises:
            ExportError: A number is out of range.
        """
        if self._np is np.float32:
            return values.astype(np.float32, copy=False)
        from edgekit.export.quantization.float16 import TOO_LARGE, to_float16

        cast, lost = to_float16(values)
        if lost == TOO_LARGE:
            raise ExportError(
                "a weight or a scale is too large for FP16", hint="export for a target that computes in FP32"
            )
        return cast
