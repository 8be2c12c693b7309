"""Reads the weights of the `onnxruntime` dialect: codes of `MatMulNBits` and `GatherBlockQuantized`, or floats.

Matrices that read the same input may be fused under one name. The format is described in `edgekit.export.writers.onnx`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.evaluation.readers.onnx_file import OnnxFile
from edgekit.export.forward.tensors import FloatArray
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["OnnxRuntimeTensors"]


@dataclass(frozen=True, slots=True)
class _Location:
    """The location of a matrix: the stored (fused) matrix and the first row in it."""

    name: str
    first_row: int


class OnnxRuntimeTensors:
    """`Tensors` of an artifact in the `onnxruntime` dialect.

    Args:
        folder: The folder of the graph.
        decoder: The model in it.

    Raises:
        ExportError: The graph is missing or damaged.
    """

    def __init__(self, folder: Path, decoder: Decoder) -> None:
        self._file = OnnxFile(folder)
        self._offset = np.float32(decoder.norm_offset)
        self._embedding = decoder.embedding.name
        self._fused: dict[str, _Location] = {}
        self._order: dict[str, npt.NDArray[np.int64]] = {}
        for layer in decoder.layers:
            for parts, name in (((layer.q, layer.k, layer.v), "qkv_proj"), ((layer.gate, layer.up), "gate_up_proj")):
                fused_name, row = f"{parts[0].name.rpartition('.')[0]}.{name}", 0
                for part in parts:
                    self._fused[part.name] = _Location(fused_name, row)
                    row += part.out_features
            if layer.rope.dim != decoder.head_dim:
                self._undo_order(layer.rope.dim, decoder.head_dim, (layer.q, layer.k), (layer.q_norm, layer.k_norm))

    def norm(self, name: str) -> FloatArray:
        """See `Tensors.norm`; the artifact stores norms with the norm offset added."""
        weight: FloatArray = self._file.floats(name) - self._offset
        return weight[self._order[name]] if name in self._order else weight

    def bias(self, linear: Linear) -> FloatArray:
        """See `Tensors.bias`."""
        location = self._location(linear, ".bias")
        bias = self._file.floats(f"{location.name}.bias")[location.first_row : location.first_row + linear.out_features]
        return bias[self._order[linear.name]] if linear.name in self._order else bias

    def matrix(self, linear: Linear, start: int = 0, stop: int | None = None) -> FloatArray:
        """See `Tensors.matrix`."""
        if linear.name in self._order:
            matrix = self._matrix(linear, 0, linear.out_features)
            return matrix[self._order[linear.name][start:stop]]
        return self._matrix(linear, start, linear.out_features if stop is None else stop)

    def _matrix(self, linear: Linear, start: int, stop: int) -> FloatArray:
        location = self._location(linear, ".weight.qweight", ".weight")
        name, rows = f"{location.name}.weight", slice(location.first_row + start, location.first_row + stop)
        file, table = self._file, linear.name == self._embedding
        if f"{name}.qweight" not in file:
            return file.rows(name, rows, linear.in_features)
        packed = np.asarray(file.array(f"{name}.qweight")[rows]).reshape(stop - start, -1)
        bits = packed.shape[1] * 8 // linear.in_features
        codes = packed if bits == 8 else _nibbles(packed)
        scales = np.asarray(file.array(f"{name}.scales")[rows])
        zero_points: FloatArray = np.full(scales.shape, 1 << (bits - 1), np.float32)
        if f"{name}.zero_points" in file:
            stored = np.asarray(file.array(f"{name}.zero_points")[rows])
            zero_points = (stored if bits == 8 else _nibbles(stored)[:, : scales.shape[1]]).astype(np.float32)
        offsets: FloatArray = -zero_points * scales
        if f"{name}.offsets" in file:
            residuals = file.array(f"{name}.offsets")
            offsets += residuals[rows] if table else residuals[:, rows].T
        return GroupedTensor(codes, scales, offsets, bits).dequantize()

    def _location(self, linear: Linear, *endings: str) -> _Location:
        if linear.name not in self._fused or any(f"{linear.name}{ending}" in self._file for ending in endings):
            return _Location(linear.name, 0)
        return self._fused[linear.name]

    def _undo_order(self, dim: int, size: int, linears: tuple[Linear, ...], norms: tuple[str | None, ...]) -> None:
        """Record how to undo the element order of heads with partial RoPE.

        The operator rotates full heads: the unrotated elements are stored behind each of the two rotated halves.
        """
        half, middle = dim // 2, (dim + size) // 2
        stored = np.concatenate(
            [np.arange(0, half), np.arange(dim, middle), np.arange(half, dim), np.arange(middle, size)]
        )
        inverse = np.argsort(stored)
        for linear in linears:
            heads = np.arange(0, linear.out_features, size)
            self._order[linear.name] = (heads[:, None] + inverse).reshape(-1)
        self._order |= {norm: inverse for norm in norms if norm is not None}


def _nibbles(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Unpack two codes from each byte, the low nibble first."""
    codes: npt.NDArray[np.uint8] = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    return codes
