"""Compiled packing of 4-bit codes, two per byte.

The first of two codes is in the low nibble, as in MLX, ONNX and onnxruntime.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.quantization.jit import helper, kernel

__all__ = ["pack_pairs", "pack_transposed", "unpack_pairs"]

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

_FOUR, _LOW = np.uint8(4), np.uint8(15)
_4, _8, _16, _32 = (np.uint64(n) for n in (4, 8, 16, 32))
_HALVES, _QUARTERS = np.uint64(0x00000000FFFFFFFF), np.uint64(0x0000FFFF0000FFFF)
_BYTES = np.uint64(0x00FF00FF00FF00FF)


@kernel("void(uint8[::1], uint8[::1])")
def pack_pairs(codes: Bytes, packed: Bytes) -> None:
    """Pack codes `[2 n]` into bytes `[n]`."""
    for i in range(packed.shape[0]):
        packed[i] = np.uint8(codes[2 * i] | np.uint8(codes[2 * i + 1] << _FOUR))


@kernel("void(uint8[::1], uint8[::1])")
def unpack_pairs(packed: Bytes, codes: Bytes) -> None:
    """Unpack bytes `[n]` into codes `[2 n]`."""
    for i in range(packed.shape[0]):
        codes[2 * i], codes[2 * i + 1] = np.uint8(packed[i] & _LOW), np.uint8(packed[i] >> _FOUR)


@helper()
def _swap(high: np.uint64, low: np.uint64, by: np.uint64, mask: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Exchange the bits of `high` above bit `by` with the low bits of `low`, in every field of the mask."""
    moved = ((high >> by) ^ low) & mask
    return high ^ (moved << by), low ^ moved


@kernel("void(uint64[:,::1], int64, uint64, uint64[:,::1])")
def pack_transposed(codes: Words, first: int, flip: np.uint64, packed: Words) -> None:
    """Pack columns of codes `[out, in]` as rows `[columns, out / 2]`; all arrays are viewed as 64-bit words.

    Eight words of packed bytes are a matrix of 8 x 8 bytes, which is transposed by exchanging halves, then quarters,
    then bytes between its rows (Warren, Hacker's Delight, 7-3).

    Args:
        codes: `[out, in / 8]`; `out` is a multiple of 16.
        first: The first column of words to pack.
        flip: Bits to invert in every word.
        packed: `[columns, out / 16]`, overwritten; its first dimension is the number of columns, a multiple of 8.
    """
    for k in range(packed.shape[1]):
        for column in range(packed.shape[0] // 8):
            rows, word = 16 * k, first + column
            a = codes[rows, word] | codes[rows + 1, word] << _4
            b = codes[rows + 2, word] | codes[rows + 3, word] << _4
            c = codes[rows + 4, word] | codes[rows + 5, word] << _4
            d = codes[rows + 6, word] | codes[rows + 7, word] << _4
            e = codes[rows + 8, word] | codes[rows + 9, word] << _4
            f = codes[rows + 10, word] | codes[rows + 11, word] << _4
            g = codes[rows + 12, word] | codes[rows + 13, word] << _4
            h = codes[rows + 14, word] | codes[rows + 15, word] << _4
            a, e = _swap(a, e, _32, _HALVES)
            b, f = _swap(b, f, _32, _HALVES)
            c, g = _swap(c, g, _32, _HALVES)
            d, h = _swap(d, h, _32, _HALVES)
            a, c = _swap(a, c, _16, _QUARTERS)
            b, d = _swap(b, d, _16, _QUARTERS)
            e, g = _swap(e, g, _16, _QUARTERS)
            f, h = _swap(f, h, _16, _QUARTERS)
            a, b = _swap(a, b, _8, _BYTES)
            c, d = _swap(c, d, _8, _BYTES)
            e, f = _swap(e, f, _8, _BYTES)
            g, h = _swap(g, h, _8, _BYTES)
            packed[8 * column, k], packed[8 * column + 1, k] = a ^ flip, b ^ flip
            packed[8 * column + 2, k], packed[8 * column + 3, k] = c ^ flip, d ^ flip
            packed[8 * column + 4, k], packed[8 * column + 5, k] = e ^ flip, f ^ flip
            packed[8 * column + 6, k], packed[8 * column + 7, k] = g ^ flip, h ^ flip
