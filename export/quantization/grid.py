"""Quantized tensors, and the grids of values that formats can represent.

All formats edgekit reads and writes share one form: integer codes with a scale and an offset per group
of consecutive input features, `w = code * scale + offset`. GGUF Q4_1, MLX affine, GPTQ, AWQ, ONNX
`DequantizeLinear` and onnxruntime `MatMulNBits` differ only in the offsets they allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

__all__ = ["Grid", "GroupedTensor", "Offset", "as_floats"]

FloatArray = npt.NDArray[np.float32]


class Offset(Enum):
    """The offsets that a format allows for a group."""

    SYMMETRIC = "symmetric"
    """`offset = -2**(bits-1) * scale` with `scale > 0`: no zero point is stored (TensorRT INT4).

    onnx-tensorrt rejects scales that are not positive ("Scale coefficients must all be positive").
    """
    ZERO_POINT = "zero-point"
    """`offset = -z * scale` with an integer `0 <= z < 2**bits` (onnxruntime MatMulNBits, AWQ, GPTQ)."""
    FLOAT = "float"
    """Any offset (MLX affine, GGUF Q4_1 and Q4_K)."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that a target's format can represent for one weight matrix.

    Attributes:
        bits: Bits per code; edgekit writes 4 and 8.
        group_size: Consecutive input features that share a scale.
        offset: The allowed offsets.
        scale_dtype: The dtype of stored scales and offsets.
    """

    bits: int
    group_size: int
    offset: Offset
    scale_dtype: type[np.float16 | np.float32] = np.float32


@dataclass(frozen=True, slots=True)
class GroupedTensor:
    """A quantized weight matrix `[out, in]`.

    `w[o, i] = codes[o, i] * scales[o, g] + offsets[o, g]`, with `g = i // group_size`.

    Attributes:
        codes: uint8 `[out, in]`, one code per element, `0 <= code < 2**bits`.
        scales: float32 `[out, in / group_size]`; may be negative or zero.
        offsets: float32, shaped like `scales`.
        bits: Bits per code.
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
        """Return a tensor with these codes and uninitialized scales and offsets, to be filled by `put`."""
        shape = (codes.shape[0], codes.shape[1] // group_size)
        return cls(codes, np.empty(shape, np.float32), np.empty(shape, np.float32), bits)

    def rows(self, start: int, stop: int) -> GroupedTensor:
        """Return the rows `start:stop` as a view."""
        return GroupedTensor(self.codes[start:stop], self.scales[start:stop], self.offsets[start:stop], self.bits)

    def put(self, start: int, part: GroupedTensor) -> None:
        """Copy the rows of a tensor on the same grid into this one, starting at row `start`."""
        stop = start + part.shape[0]
        self.codes[start:stop], self.scales[start:stop] = part.codes, part.scales
        self.offsets[start:stop] = part.offsets

    def dequantize(self) -> FloatArray:
        """Return the dequantized matrix, float32 `[out, in]`."""
        out, groups = self.scales.shape
        grouped = self.codes.reshape(out, groups, self.group_size).astype(np.float32)
        grouped *= self.scales[:, :, None]
        grouped += self.offsets[:, :, None]
        return grouped.reshape(self.codes.shape)


def as_floats(tensor: GroupedTensor | FloatArray) -> FloatArray:
    """Return a tensor in float32, dequantized if necessary."""
    return tensor.dequantize() if isinstance(tensor, GroupedTensor) else tensor
