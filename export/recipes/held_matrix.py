"""Quantized matrices that wait in memory, packed: those that a checkpoint's files have before their turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["HeldMatrix"]


@dataclass(frozen=True, slots=True)
class HeldMatrix:
    """A quantized matrix in as few bytes as hold it exactly.

    Attributes:
        codes: 4-bit codes two in a byte, `[out, in / 2]`; others as they are.
        scales: Float16 if that is exact.
        offsets: Likewise; None if the grid is symmetric.
        shape: `(out, in)`.
        bits: Bits per code.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.floating[Any]]
    offsets: npt.NDArray[np.floating[Any]] | None
    shape: tuple[int, int]
    bits: int

    @classmethod
    def of(cls, tensor: GroupedTensor) -> HeldMatrix:
        """Pack a matrix."""
        from edgekit.export.writers.nibbles import pack_pairs

        codes, (out, width) = np.ascontiguousarray(tensor.codes), tensor.shape
        if tensor.bits == 4 and width % 2 == 0:
            packed = np.empty((out, width // 2), np.uint8)
            pack_pairs(codes.reshape(-1), packed.reshape(-1))
        else:
            packed = codes.copy()
        symmetric = np.array_equal(tensor.offsets, _symmetric(tensor.scales, tensor.bits))
        offsets = None if symmetric else _narrowed(tensor.offsets)
        return cls(packed, _narrowed(tensor.scales), offsets, tensor.shape, tensor.bits)

    def rows(self, start: int, stop: int) -> GroupedTensor:
        """Unpack the rows `start:stop`."""
        from edgekit.export.writers.nibbles import unpack_pairs

        codes = self.codes[start:stop]
        if codes.shape[1] != self.shape[1]:
            packed, codes = codes, np.empty((len(codes), self.shape[1]), np.uint8)
            unpack_pairs(packed.reshape(-1), codes.reshape(-1))
        scales = self.scales[start:stop].astype(np.float32)
        kept = self.offsets
        offsets = _symmetric(scales, self.bits) if kept is None else kept[start:stop].astype(np.float32)
        return GroupedTensor(codes, scales, offsets, self.bits)


def _symmetric(scales: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.float32]:
    offsets: npt.NDArray[np.float32] = scales * np.float32(-(1 << (bits - 1)))
    return offsets


def _narrowed(values: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
    from edgekit.export.quantization.float16 import EXACT, to_float16

    narrow, lost = to_float16(np.ascontiguousarray(values))
    return narrow if lost == EXACT else values.copy()
