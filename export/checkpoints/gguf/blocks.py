"""Decodes GGUF's block encodings of 32 or 256 consecutive elements, bit-exactly.

Source: the block structures in ggml's `ggml-common.h` and the arithmetic of its `ggml-quants.c`; values are computed
in float32, in the same order, so that they are equal to the last bit.

Encodings with 4- or 8-bit codes and one scale per 32 elements become codes with scales and offsets; the others
become float32. All functions take uint8 `[n, bytes per block]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.export.checkpoints.floats import widen

__all__ = ["BLOCKS", "Block", "Grouped", "encoding_name"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Grouped:
    """Codes of consecutive blocks.

    Attributes:
        codes: uint8 `[n, elements per block]`.
        scales: float32 `[n, groups per block]`.
        offsets: float32, shaped like `scales`.
    """

    codes: Bytes
    scales: Floats
    offsets: Floats


@dataclass(frozen=True, slots=True)
class Block:
    """One encoding.

    Attributes:
        number: ggml's type number.
        length: Elements per block.
        size: Bytes per block.
        floats: Decodes to float32 `[n, length]`; None if `grouped` is set.
        grouped: Decodes to codes; None if edgekit does not keep the codes of this encoding.
        bits: Bits per code, with `grouped`.
        group_size: Elements that share a scale, with `grouped`.
    """

    number: int
    length: int
    size: int
    floats: Callable[[Bytes], Floats] | None = None
    grouped: Callable[[Bytes], Grouped] | None = None
    bits: int = 0
    group_size: int = 32

    def decode(self, blocks: Bytes) -> Floats:
        """Return the values of blocks, float32 `[n, length]`."""
        if self.floats is not None:
            return self.floats(blocks)
        assert self.grouped is not None  # noqa: S101  every encoding has one or the other
        part = self.grouped(blocks)
        return _by_group(part.scales, part.codes.astype(np.float32), -part.offsets)


def encoding_name(number: int) -> str:
    """Return ggml's name for a type number; `type 99` for an unknown one."""
    return _NAMES.get(number, f"type {number}")


def _half(blocks: Bytes, start: int) -> Floats:
    """The fp16 number at a byte offset of each block, as float32 `[n, 1]`."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _bits(packed: Bytes, width: int, *, run: int) -> Bytes:
    """Unpack codes of `width` bits from runs of `run` bytes; the lowest bits of all bytes of a run come first.

    `[n, bytes]` to `[n, bytes * 8 / width]`.
    """
    shifts = np.arange(0, 8, width, dtype=np.uint8)[None, None, :, None]
    lanes = packed.reshape(len(packed), -1, 1, run) >> shifts
    lanes &= np.uint8((1 << width) - 1)
    return lanes.reshape(len(packed), -1)


def _f32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32, copy=False)


def _f16(blocks: Bytes) -> Floats:
    values = np.empty(blocks.shape[0], dtype=np.float32)
    widen(np.ascontiguousarray(blocks).reshape(-1), "F16", values)
    return values[:, None]


def _bf16(blocks: Bytes) -> Floats:
    wide = np.ascontiguousarray(blocks).view("<u2").astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def _q4_0(blocks: Bytes) -> Grouped:
    # d (fp16), 16 bytes of codes: w = d * (q - 8)
    scales = _half(blocks, 0)
    return Grouped(_bits(blocks[:, 2:], 4, run=16), scales, np.float32(-8) * scales)


def _q4_1(blocks: Bytes) -> Grouped:
    # d, m (fp16), 16 bytes of codes: w = d * q + m
    return Grouped(_bits(blocks[:, 4:], 4, run=16), _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Bytes) -> Grouped:
    # d (fp16), 32 signed bytes: w = d * q. Flipping the top bit adds 128 to a signed byte.
    scales = _half(blocks, 0)
    return Grouped(blocks[:, 2:] ^ np.uint8(0x80), scales, np.float32(-128) * scales)


def _fifth_bit(blocks: Bytes, start: int) -> Bytes:
    """32 bits, lowest first, shifted to bit 4: `[n, 32]`."""
    bits: Bytes = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
    bits <<= np.uint8(4)
    return bits


def _q5_0(blocks: Bytes) -> Floats:
    # d (fp16), the codes' fifth bits (32), 16 bytes of their low four: w = d * (q - 16)
    codes = (_bits(blocks[:, 6:], 4, run=16) | _fifth_bit(blocks, 2)).astype(np.float32)
    codes -= np.float32(16)
    codes *= _half(blocks, 0)
    return codes


def _q5_1(blocks: Bytes) -> Floats:
    # d, m (fp16), then as Q5_0: w = d * q + m
    codes = (_bits(blocks[:, 8:], 4, run=16) | _fifth_bit(blocks, 4)).astype(np.float32)
    codes *= _half(blocks, 0)
    codes += _half(blocks, 2)
    return codes


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """The eight 6-bit scales and minima in 12 bytes at offset 4, times d and dmin: two `[n, 8]` (Q4_K, Q5_K).

    Bytes 0-3 hold scales 0-3 in their low six bits, bytes 4-7 minima 0-3; bytes 8-11 hold the low nibbles of
    scales 4-7 (low) and minima 4-7 (high), whose two high bits are the top bits of bytes 0-3 and 4-7.
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    low, high = np.uint8(0x3F), np.uint8(0x30)
    scales = np.concatenate([first & low, (third & np.uint8(0x0F)) | ((first >> 2) & high)], axis=1)
    minima = np.concatenate([second & low, (third >> 4) | ((second >> 2) & high)], axis=1)
    return _half(blocks, 0) * scales.astype(np.float32), _half(blocks, 2) * minima.astype(np.float32)


def _q4_k(blocks: Bytes) -> Grouped:
    # d, dmin (fp16), scales (12), 128 bytes of codes: w = d*sc * q - dmin*m
    scales, minima = _scales_and_minima(blocks)
    return Grouped(_bits(blocks[:, 16:], 4, run=32), scales, -minima)


def _q5_k(blocks: Bytes) -> Floats:
    # as Q4_K, with 32 bytes of fifth bits (bit i belongs to group i) before the codes
    scales, minima = _scales_and_minima(blocks)
    fifth = _bits(blocks[:, 16:48], 1, run=32)
    codes = (_bits(blocks[:, 48:], 4, run=32) | (fifth << np.uint8(4))).astype(np.float32)
    return _by_group(scales, codes, minima)


def _q2_k(blocks: Bytes) -> Floats:
    # 16 bytes of 4-bit scales (low) and minima (high), 64 bytes of 2-bit codes, d, dmin (fp16)
    packed = blocks[:, :16]
    scales = _half(blocks, 80) * (packed & np.uint8(0x0F)).astype(np.float32)
    minima = _half(blocks, 82) * (packed >> 4).astype(np.float32)
    return _by_group(scales, _bits(blocks[:, 16:80], 2, run=32).astype(np.float32), minima)


def _q3_k(blocks: Bytes) -> Floats:
    # 32 bytes of third bits (inverted), 64 bytes of low bits, 16 six-bit scales (12 bytes), d (fp16)
    low = _bits(blocks[:, 96:104], 4, run=8)
    high = _bits(blocks[:, 104:108], 2, run=4)
    scales = _half(blocks, 108) * ((low | (high << np.uint8(4))).astype(np.float32) - np.float32(32))
    third = _bits(blocks[:, :32], 1, run=32)
    codes = (_bits(blocks[:, 32:96], 2, run=32) | (third << np.uint8(2))).astype(np.float32)
    return _by_group(scales, codes - np.float32(4))


def _q6_k(blocks: Bytes) -> Floats:
    # 128 bytes of low nibbles, 64 bytes of top bits, 16 signed scales, d (fp16): w = d*sc * (q - 32)
    scales = _half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    top = _bits(blocks[:, 128:192], 2, run=32)
    codes = (_bits(blocks[:, :128], 4, run=64) | (top << np.uint8(4))).astype(np.float32)
    return _by_group(scales, codes - np.float32(32))


# ggml's 16 unevenly spaced values of 4-bit codes (`kvalues_iq4nl`).
_KVALUES_IQ4NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32)


def _iq4_nl(blocks: Bytes) -> Floats:
    # d (fp16), 16 bytes of codes: w = d * value[q]
    values = _KVALUES_IQ4NL[_bits(blocks[:, 2:], 4, run=16)]
    values *= _half(blocks, 0)
    return values


def _iq4_xs(blocks: Bytes) -> Floats:
    # d (fp16), 16 bits of the scales' top bits, 4 bytes of their low four, 128 bytes of codes: w = d*(sc-32) * value[q]
    top = _bits(blocks[:, 2:4], 2, run=1)
    low = _bits(blocks[:, 4:8], 4, run=1)
    scales = _half(blocks, 0) * ((low | (top << np.uint8(4))).astype(np.float32) - np.float32(32))
    return _by_group(scales, _KVALUES_IQ4NL[_bits(blocks[:, 8:], 4, run=16)])


def _by_group(scales: Floats, codes: Floats, minima: Floats | None = None) -> Floats:
    """`scale * code - minimum`, group by group: `[n, groups]` and `[n, length]` to `[n, length]`."""
    grouped = codes.reshape(*scales.shape, -1)
    grouped *= scales[:, :, None]
    if minima is not None:
        grouped -= minima[:, :, None]
    return grouped.reshape(codes.shape)


BLOCKS = {
    "F32": Block(0, 1, 4, _f32),
    "F16": Block(1, 1, 2, _f16),
    "BF16": Block(30, 1, 2, _bf16),
    "Q4_0": Block(2, 32, 18, grouped=_q4_0, bits=4),
    "Q4_1": Block(3, 32, 20, grouped=_q4_1, bits=4),
    "Q5_0": Block(6, 32, 22, _q5_0),
    "Q5_1": Block(7, 32, 24, _q5_1),
    "Q8_0": Block(8, 32, 34, grouped=_q8_0, bits=8),
    "Q2_K": Block(10, 256, 84, _q2_k),
    "Q3_K": Block(11, 256, 110, _q3_k),
    "Q4_K": Block(12, 256, 144, grouped=_q4_k, bits=4),
    "Q5_K": Block(13, 256, 176, _q5_k),
    "Q6_K": Block(14, 256, 210, _q6_k),
    "IQ4_NL": Block(20, 32, 18, _iq4_nl),
    "IQ4_XS": Block(23, 256, 136, _iq4_xs),
}
"""Every encoding that edgekit reads, by ggml's name."""

_NAMES = {block.number: name for name, block in BLOCKS.items()} | {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
