"""Lays out quantized matrices as bytes of ONNX initializers.

Sources: onnx/docs/docsgen/source/technical/int4.md (first element in the low nibble), and onnxruntime's
docs/ContribOperators.md for `MatMulNBits` and `GatherBlockQuantized`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.quantization.grid import GroupedTensor, Offset

__all__ = [
    "concatenate",
    "int4_columns",
    "int4_planes",
    "lookup_needs",
    "nearest_zero_points",
    "offset_kind",
    "pack_rows",
    "rows_as_int32",
]

Bytes = npt.NDArray[np.uint8]

# Rows or columns processed at a time, which bounds the memory of a transposition.
_SPAN = 256


def pack_rows(codes: Bytes, bits: int) -> Iterator[Bytes]:
    """Pack codes `[out, in]` as rows of bytes `[out, in * bits / 8]`, the first of two 4-bit codes in the low nibble.

    Both `MatMulNBits` (weights `[N, K / block, block * bits / 8]`) and `GatherBlockQuantized` read this layout.
    Yields blocks of rows. `in` is even.
    """
    step = max(1, (1 << 22) // max(1, codes.shape[1]))
    for start in range(0, codes.shape[0], step):
        part = codes[start : start + step]
        yield np.ascontiguousarray(part) if bits == 8 else nibbles(part)


def nibbles(codes: Bytes) -> Bytes:
    """Pack pairs of 4-bit codes along the last axis, which is even, the first of two in the low nibble."""
    from edgekit.export.writers.nibbles import pack_pairs

    packed = np.empty((*codes.shape[:-1], codes.shape[-1] // 2), np.uint8)
    pack_pairs(np.ascontiguousarray(codes).reshape(-1), packed.reshape(-1))
    return packed


def nearest_zero_points(tensor: GroupedTensor) -> tuple[Bytes, npt.NDArray[np.float32]]:
    """Return the nearest integer zero points, uint8 `[out, groups]`, and the residual offsets.

    `offset = -zero_point * scale + residual`
    """
    scale = np.where(tensor.scales == 0, np.float32(1), tensor.scales)
    top = np.float32((1 << tensor.bits) - 1)
    zero_points = np.clip(np.rint(-tensor.offsets / scale), 0, top)
    residual = (tensor.offsets + zero_points * tensor.scales).astype(np.float32)
    return zero_points.astype(np.uint8), residual


def lookup_needs(bits: int, groups: int, *, zero_points: bool) -> dict[str, str]:
    """Return metadata with the onnxruntime version that a `GatherBlockQuantized` needs, if not all versions do.

    Before 1.27, it ignored the padding of 4-bit zero points in rows with an odd number of groups (measured: 1.26.0
    against 1.27.0).
    """
    return {"edgekit.onnxruntime": "1.27"} if zero_points and bits == 4 and groups % 2 else {}


def offset_kind(tensor: GroupedTensor) -> Offset:
    """Return the most restricted kind of offset that represents this tensor, up to float32 rounding."""
    tolerance = np.float32(1e-5) * np.abs(tensor.scales) * (1 << tensor.bits)
    middle = np.float32(1 << (tensor.bits - 1))
    if bool(np.all(np.abs(tensor.offsets + middle * tensor.scales) <= tolerance)):
        return Offset.SYMMETRIC
    scale = np.where(tensor.scales == 0, np.float32(1), tensor.scales)
    zero_points = np.rint(-tensor.offsets / scale)
    exact = np.abs(tensor.offsets + zero_points * tensor.scales) <= tolerance
    in_range = (zero_points >= 0) & (zero_points < (1 << tensor.bits))
    if bool(np.all(exact & in_range | ((tensor.scales == 0) & (tensor.offsets == 0)))):
        return Offset.ZERO_POINT
    return Offset.FLOAT


def int4_planes(tensor: GroupedTensor) -> tuple[tuple[GroupedTensor, ...], npt.NDArray[np.float32] | None]:
    """Split a tensor into symmetric 4-bit planes with scales >= 0, and residual offsets.

    `w = code * scale + offset` is `(code - 8) * scale` plus the constant `offset + 8 * scale`. A negative scale
    becomes positive by reversing the codes. An 8-bit code is `16 * high + low`.

    Returns:
        One plane, or for 8 bits the high and the low one; and residual offsets, float32 `[out, groups]`, or None if
        the tensor is symmetric already. The tensor is the sum of all.
    """
    top = np.float32((1 << tensor.bits) - 1)
    negative = tensor.scales < 0
    codes, scales, offsets = tensor.codes, np.abs(tensor.scales), tensor.offsets
    if bool(negative.any()):
        offsets = np.where(negative, offsets - top * scales, offsets)
        flip = np.repeat(negative, tensor.group_size, axis=1)
        codes = np.where(flip, np.uint8(top) - codes, codes)
    elif tensor.bits == 4 and offset_kind(tensor) is Offset.SYMMETRIC:
        return (tensor,), None
    if tensor.bits == 4:
        return (_symmetric(codes, scales),), offsets + 8 * scales
    high, low = _symmetric(codes >> np.uint8(4), 16 * scales), _symmetric(codes & np.uint8(15), scales)
    return (high, low), offsets + (128 + 8) * scales


def _symmetric(codes: Bytes, scales: npt.NDArray[np.float32]) -> GroupedTensor:
    return GroupedTensor(codes, scales, -8 * scales, 4)


def int4_columns(codes: Bytes) -> Iterator[Bytes]:
    """Pack codes `[out, in]` of a symmetric tensor as the bytes of an ONNX INT4 initializer `[in, out]`.

    INT4 stores `code - 8` in two's complement; that nibble is `code ^ 8`. Yields blocks of rows of the transposed
    matrix.
    """
    from edgekit.export.writers.nibbles import pack_transposed

    out, width = codes.shape
    if out % 16 or width % 64:
        # Not a multiple of 64-bit words. Only the last block can be odd; the spare nibble is then zero.
        for start in range(0, width, _SPAN):
            flat = (codes[:, start : start + _SPAN].T ^ np.uint8(8)).reshape(-1)
            yield nibbles(np.append(flat, np.zeros(flat.size % 2, np.uint8)))
        return
    words = np.ascontiguousarray(codes).view(np.uint64)
    for start in range(0, width, _SPAN):
        part = np.empty((min(_SPAN, width - start), out // 16), np.uint64)
        pack_transposed(words, start // 8, np.uint64(0x8888888888888888), part)
        yield part.reshape(-1).view(np.uint8)


def rows_as_int32(codes: Bytes, bits: int) -> Iterator[npt.NDArray[np.int32]]:
    """Pack codes `[out, in]` as int32 `[out, in * bits / 32]`, the first code in the lowest bits."""
    for part in pack_rows(codes, bits):
        yield np.ascontiguousarray(part).view("<i4").astype(np.int32, copy=False)


def concatenate(tensors: Sequence[GroupedTensor]) -> GroupedTensor:
    """Concatenate matrices on the same grid along their outputs.

    Raises:
        ExportError: Bits or group sizes differ.
    """
    first = tensors[0]
    if any((other.bits, other.group_size) != (first.bits, first.group_size) for other in tensors):
        raise ExportError("matrices on different grids cannot be fused")
    return GroupedTensor(
        codes=np.concatenate([tensor.codes for tensor in tensors]),
        scales=np.concatenate([tensor.scales for tensor in tensors]),
        offsets=np.concatenate([tensor.offsets for tensor in tensors]),
        bits=first.bits,
    )
