"""How quantized matrices are laid out in the bytes of an ONNX initializer. It knows no graph.

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

# Rows or columns handled at a time: bounds the memory of a transposition.
_SPAN = 256


def pack_rows(codes: Bytes, bits: int) -> Iterator[Bytes]:
    """Codes `[out, in]` as rows of bytes `[out, in * bits / 8]`, the first of two 4-bit codes in the low nibble.

    Both `MatMulNBits` (weights `[N, K / block, block * bits / 8]`) and `GatherBlockQuantized` read these bytes.
    Yields parts of whole rows. `in` is even.
    """
    step = max(1, (1 << 22) // max(1, codes.shape[1]))
    for start in range(0, codes.shape[0], step):
        part = codes[start : start + step]
        yield np.ascontiguousarray(part) if bits == 8 else nibbles(part)


def nibbles(codes: Bytes) -> Bytes:
    """Pair 4-bit codes along the last axis, which is even, the first of two in the low nibble."""
    from edgekit.export.writers.nibbles import pack_pairs

    packed = np.empty((*codes.shape[:-1], codes.shape[-1] // 2), np.uint8)
    pack_pairs(np.ascontiguousarray(codes).reshape(-1), packed.reshape(-1))
    return packed


def nearest_zero_points(tensor: GroupedTensor) -> tuple[Bytes, npt.NDArray[np.float32]]:
    """Integer zero points, uint8 `[out, groups]`, and what they leave of the offsets.

    `offset = -zero_point * scale + rest`
    """
    scale = np.where(tensor.scales == 0, np.float32(1), tensor.scales)
    top = np.float32((1 << tensor.bits) - 1)
    points = np.clip(np.rint(-tensor.offsets / scale), 0, top)
    rest = (tensor.offsets + points * tensor.scales).astype(np.float32)
    return points.astype(np.uint8), rest


def lookup_needs(bits: int, groups: int, *, zero_points: bool) -> dict[str, str]:
    """Metadata of a graph with a `GatherBlockQuantized`: the onnxruntime that looks up its table right, if not all do.

    Before 1.27, 4-bit zero points of rows with an odd number of groups were read as if nothing filled the last byte of
    each row (measured: 1.26.0 against 1.27.0).
    """
    return {"edgekit.onnxruntime": "1.27"} if zero_points and bits == 4 and groups % 2 else {}


def offset_kind(tensor: GroupedTensor) -> Offset:
    """The narrowest kind of offset that holds this tensor, up to the rounding of float32."""
    tolerance = np.float32(1e-5) * np.abs(tensor.scales) * (1 << tensor.bits)
    middle = np.float32(1 << (tensor.bits - 1))
    if bool(np.all(np.abs(tensor.offsets + middle * tensor.scales) <= tolerance)):
        return Offset.SYMMETRIC
    scale = np.where(tensor.scales == 0, np.float32(1), tensor.scales)
    points = np.rint(-tensor.offsets / scale)
    exact = np.abs(tensor.offsets + points * tensor.scales) <= tolerance
    if bool(
        np.all(exact & (points >= 0) & (points < (1 << tensor.bits)) | ((tensor.scales == 0) & (tensor.offsets == 0)))
    ):
        return Offset.ZERO_POINT
    return Offset.FLOAT


def int4_planes(tensor: GroupedTensor) -> tuple[tuple[GroupedTensor, ...], npt.NDArray[np.float32] | None]:
    """Take a tensor apart into symmetric 4-bit ones with scales >= 0, and what is left of its offsets.

    `w = code * scale + offset` is `(code - 8) * scale` plus the constant `offset + 8 * scale`. A negative scale
    turns positive by counting codes from the other end. An 8-bit code is `16 * high + low`.

    Returns:
        One plane, or for 8 bits the high and the low one; their sum, and the constants float32 `[out, groups]`
        (None where all are zero), is the tensor.
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
    """Codes `[out, in]` of a symmetric tensor as the bytes of an ONNX INT4 initializer `[in, out]`.

    INT4 holds `code - 8` in two's complement, and that nibble is `code ^ 8`. Yields parts of whole rows of
    the transposed matrix.
    """
    from edgekit.export.writers.nibbles import pack_transposed

    out, width = codes.shape
    if out % 16 or width % 64:
        # Not whole words. Only the last part can be odd: then the spare nibble is zero.
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
    """Codes `[out, in]` as int32 `[out, in * bits / 32]`, the first code in the lowest bits."""
    for part in pack_rows(codes, bits):
        yield np.ascontiguousarray(part).view("<i4").astype(np.int32, copy=False)


def concatenate(tensors: Sequence[GroupedTensor]) -> GroupedTensor:
    """Stack matrices of one grid along their outputs.

    Raises:
        ExportError: Bits or group sizes differ.
    """
    first = tensors[0]
    if any((other.bits, other.group_size) != (first.bits, first.group_size) for other in tensors):
        raise ExportError("matrices on different grids cannot be joined")
    return GroupedTensor(
        codes=np.concatenate([tensor.codes for tensor in tensors]),
        scales=np.concatenate([tensor.scales for tensor in tensors]),
        offsets=np.concatenate([tensor.offsets for tensor in tensors]),
        bits=first.bits,
    )
