"""Reads the weights of the TensorRT dialects: symmetric INT4 planes and offsets, or floats.

A matrix is the sum of its planes, `(code - 8) * scale`, and an offset per group. The embedding is stored as 32-bit
words, and a tied head is read from it. The format is described in `edgekit.export.writers.onnx`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.evaluation.readers.onnx_file import OnnxFile
from edgekit.export.forward.tensors import FloatArray
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["TensorRtTensors"]

# Rows of the stored `[in, out]` unpacked at a time; even, so that each part starts on a byte boundary.
_ROWS = 256


class TensorRtTensors:
    """`Tensors` of an artifact in the `portable` or the `native` dialect.

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

    def norm(self, name: str) -> FloatArray:
        """See `Tensors.norm`; the artifact stores norms with the norm offset added."""
        weight: FloatArray = self._file.floats(name) - self._offset
        return weight

    def bias(self, linear: Linear) -> FloatArray:
        """See `Tensors.bias`."""
        return self._file.floats(linear.bias_name)

    def matrix(self, linear: Linear, start: int = 0, stop: int | None = None) -> FloatArray:
        """See `Tensors.matrix`."""
        columns = slice(start, linear.out_features if stop is None else stop)
        file, name = self._file, linear.weight
        if f"{name}.qweight" not in file:
            return file.rows(name, columns, linear.in_features)
        if linear.name == self._embedding:
            return self._table(linear, columns)
        weight = self._plane(linear, f"{name}.", columns)
        if f"{name}.low_qweight" in file:
            weight += self._plane(linear, f"{name}.low_", columns)
        if f"{name}.offsets" in file:
            offsets = file.array(f"{name}.offsets")[:, columns].T.astype(np.float32)
            weight.reshape(*offsets.shape, -1)[...] += offsets[:, :, None]
        return weight

    def _plane(self, linear: Linear, prefix: str, columns: slice) -> FloatArray:
        packed, width = self._file.array(f"{prefix}qweight"), linear.out_features
        codes = np.empty((columns.stop - columns.start, linear.in_features), np.uint8)
        for row in range(0, linear.in_features, _ROWS):
            rows = min(_ROWS, linear.in_features - row)
            part = np.asarray(packed[row * width // 2 : (row * width + rows * width + 1) // 2])
            flat = np.stack([part & 15, part >> 4], axis=-1).reshape(-1)[: rows * width]
            # Two's complement to code: add 8, which is the same as flipping the sign bit.
            codes[:, row : row + rows] = flat.reshape(rows, width)[:, columns].T ^ np.uint8(8)
        scales = np.ascontiguousarray(self._file.array(f"{prefix}scales")[:, columns].T, np.float32)
        return GroupedTensor(codes, scales, -8 * scales, 4).dequantize()

    def _table(self, linear: Linear, rows: slice) -> FloatArray:
        file, name = self._file, linear.weight
        words: npt.NDArray[np.int32] = np.ascontiguousarray(file.array(f"{name}.qweight")[rows])
        bits = words.shape[1] * 32 // linear.in_features
        packed = words.view(np.uint8)
        codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(words), -1)
        scales = np.asarray(file.array(f"{name}.scales")[rows]).astype(np.float32)
        if f"{name}.offsets" in file:
            offsets = np.asarray(file.array(f"{name}.offsets")[rows]).astype(np.float32)
        else:
            offsets = -np.float32(1 << (bits - 1)) * scales
        return GroupedTensor(codes, scales, offsets, bits).dequantize()
