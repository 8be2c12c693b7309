"""What a quantized tensor is, and which values a target can hold.

One form serves every format edgekit reads and writes: integer codes with a scale and an offset per group
of consecutive input features, `w = code * scale + offset`. GGUF Q4_1, MLX affine, GPTQ, AWQ, ONNX
`DequantizeLinear` and onnxruntime `MatMulNBits` differ only in what they allow for the offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

__all__ = ["Grid", "GroupedTensor", "Offset", "as_floats"]

FloatArray = npt.NDArray[np.float32]


class Offset(Enum):
    """What a format allows for the offset of a group."""

    SYMMETRIC = "symmetric"
    """`offset = -2**(bits-1) * scale` with `scale > 0`: no zero point is stored (TensorRT INT4).

    onnx-tensorrt refuses a scale that is not positive ("Scale coefficients must all be positive").
    """
    ZERO_POINT = "zero-point"
    """`offset = -z * scale` with an integer `0 <= z < 2**bits` (onnxruntime MatMulNBits, AWQ, GPTQ)."""
    FLOAT = "float"
    """Any offset (MLX affine, GGUF Q4_1 and Q4_K)."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The values a target's format can hold for one weight matrix.

    Attributes:
        bits: Bits per code, 4 or 8 in what edgekit writes.
        group_size: Consecutive input features that share a scale.
        offset: What the format allows for the offset.
        scale_dtype: How scales and offsets are stored.
    """

    bits: int
    group_size: int
    offset: Offset
    scale_dtype: type[np.float16 | np.float32] = np.float32


@dataclass(frozen=True, slots=True)
class GroupedTensor:
    """A weight matrix `[out, in]` on a grid.

    `w[o, i] = codes[o, i] * scales[o, g] + offsets[o, g]`, with `g = i // group_size`.

    Attributes:
        codes: uint8 `[out, in]`, one code per element, `0 <= code < 2**bits`.
        scales: float32 `[out, in / group_size]`; may be negative or zero.
        offsets: float32, shaped like `scales`.
        bits: Bits a code needs.
    """

    codes: npt.NDArray[np.uint8]
    scales: FloatArray
    offsets: FloatArray
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        return (int(self.codes.shape[0]), int(self.codes.shape[1]))

    @property
    def group_size(self) -> int:
        """Consecutive input features that share a scale."""
        return int(self.codes.shape[1]) // int(self.scales.shape[1])

    @classmethod
    def empty(cls, codes: npt.NDArray[np.uint8], bits: int, group_size: int) -> GroupedTensor:
        """Return a tensor to be filled row by row, with this array for its codes."""
        shape = (codes.shape[0], codes.shape[1] // group_size)
        return cls(codes, np.empty(shape, np.float32), np.empty(shape, np.float32), bits)

    def rows(self, start: int, stop: int) -> GroupedTensor:
        """Return some rows, as a view."""
        return GroupedTensor(self.codes[start:stop], self.scales[start:stop], self.offsets[start:stop], self.bits)

    def put(self, start: int, part: GroupedTensor) -> None:
        """Copy rows of the same grid into this tensor, from the row `start` on."""
        stop = start + part.shape[0]
        self.codes[start:stop], self.scales[start:stop] = part.codes, part.scales
        self.offsets[start:stop] = part.offsets

    def dequantize(self) -> FloatArray:
        """Return the float32 matrix `[out, in]` that the codes stand for."""
        out, groups = self.scales.shape
        grouped = self.codes.reshape(out, groups, self.group_size).astype(np.float32)
        grouped *= self.scales[:, :, None]
        grouped += self.offsets[:, :, None]
        return grouped.reshape(self.codes.shape)


def as_floats(tensor: GroupedTensor | FloatArray) -> FloatArray:
    """Return a tensor in float32, dequantized if it is on a grid."""
    return tensor.dequantize() if isinstance(tensor, GroupedTensor) else tensor
