"""Reads the weights of the `onnxruntime` dialect: codes of `MatMulNBits` and `GatherBlockQuantized`, or floats.

Matrices that read one input may be joined, and so their names; `edgekit.export.writers.onnx` says how they lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.artifacts.onnx_file import OnnxFile
from edgekit.export.forward.tensors import FloatArray
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["OnnxRuntimeTensors"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a matrix is if it is joined with others: under this name, from this row on."""

    name: str
    first_row: int


class OnnxRuntimeTensors:
    """`Tensors` of an artifact in the `onnxruntime` dialect.

    Args:
        folder: Holds the graph.
        decoder: The model in it.

    Raises:
        ExportError: The graph is missing or damaged.
    """

    def __init__(self, folder: Path, decoder: Decoder) -> None:
        self._file = OnnxFile(folder)
        self._offset = np.float32(decoder.norm_offset)
        self._embedding = decoder.embedding.name
        self._joined: dict[str, _Place] = {}
        self._order: dict[str, npt.NDArray[np.int64]] = {}
        for layer in decoder.layers:
            for parts, name in (((layer.q, layer.k, layer.v), "qkv_proj"), ((layer.gate, layer.up), "gate_up_proj")):
                whole, row = f"{parts[0].name.rpartition('.')[0]}.{name}", 0
                for part in parts:
                    self._joined[part.name] = _Place(whole, row)
                    row += part.out_features
            if layer.rope.dim != decoder.head_dim:
                self._unturn(layer.rope.dim, decoder.head_dim, (layer.q, layer.k), (layer.q_norm, layer.k_norm))

    def norm(self, name: str) -> FloatArray:
        """See `Tensors.norm`; the artifact has the norm's offset added."""
        weight: FloatArray = self._file.floats(name) - self._offset
        return weight[self._order[name]] if name in self._order else weight

    def bias(self, linear: Linear) -> FloatArray:
        """See `Tensors.bias`."""
        place = self._place(linear, ".bias")
        bias = self._file.floats(f"{place.name}.bias")[place.first_row : place.first_row + linear.out_features]
        return bias[self._order[linear.name]] if linear.name in self._order else bias

    def matrix(self, linear: Linear, start: int = 0, stop: int | None = None) -> FloatArray:
        """See `Tensors.matrix`."""
        if linear.name in self._order:
            whole = self._matrix(linear, 0, linear.out_features)
            return whole[self._order[linear.name][start:stop]]
        return self._matrix(linear, start, linear.out_features if stop is None else stop)

    def _matrix(self, linear: Linear, start: int, stop: int) -> FloatArray:
        place = self._place(linear, ".weight.qweight", ".weight")
        name, rows = f"{place.name}.weight", slice(place.first_row + start, place.first_row + stop)
        file, table = self._file, linear.name == self._embedding
        if f"{name}.qweight" not in file:
            return file.rows(name, rows, linear.in_features)
        packed = np.asarray(file.array(f"{name}.qweight")[rows]).reshape(stop - start, -1)
        bits = packed.shape[1] * 8 // linear.in_features
        codes = packed if bits == 8 else _nibbles(packed)
        scales = np.asarray(file.array(f"{name}.scales")[rows])
        points: FloatArray = np.full(scales.shape, 1 << (bits - 1), np.float32)
        if f"{name}.zero_points" in file:
            stored = np.asarray(file.array(f"{name}.zero_points")[rows])
            points = (stored if bits == 8 else _nibbles(stored)[:, : scales.shape[1]]).astype(np.float32)
        offsets: FloatArray = -points * scales
        if f"{name}.offsets" in file:
            rest = file.array(f"{name}.offsets")
            offsets += rest[rows] if table else rest[:, rows].T
        return GroupedTensor(codes, scales, offsets, bits).dequantize()

    def _place(self, linear: Linear, *endings: str) -> _Place:
        alone = _Place(linear.name, 0)
        if linear.name not in self._joined or any(f"{linear.name}{ending}" in self._file for ending in endings):
            return alone
        return self._joined[linear.name]

    def _unturn(self, dim: int, size: int, linears: tuple[Linear, ...], norms: tuple[str | None, ...]) -> None:
        """Note how to undo the order in which heads are stored that RoPE turns only in part.

        The operator turns whole heads: the rest of a head is spread behind the two turned halves.
        """
        half, middle = dim // 2, (dim + size) // 2
        stored = np.concatenate(
            [np.arange(0, half), np.arange(dim, middle), np.arange(half, dim), np.arange(middle, size)]
        )
        back = np.argsort(stored)
        for linear in linears:
            heads = np.arange(0, linear.out_features, size)
            self._order[linear.name] = (heads[:, None] + back).reshape(-1)
        self._order |= {norm: back for norm in norms if norm is not None}


def _nibbles(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two codes out of every byte, the low one first."""
    codes: npt.NDArray[np.uint8] = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    return codes
