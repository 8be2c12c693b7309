"""Compiled float32 to float16 conversion and rounding: numpy converts one number at a time.

A float16 has 10 fraction bits, so the 13 extra bits of a float32 are rounded off, ties to even (IEEE 754-2008,
4.3.1). Below 2**-14 (subnormals) float16 has a constant step of 2**-24, the same as float32 between 0.5 and 1, so
adding 0.5 rounds to it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.quantization.jit import kernel

__all__ = ["EXACT", "ROUNDED", "TOO_LARGE", "round_to_float16", "to_float16"]

FloatArray = npt.NDArray[np.float32]

EXACT, ROUNDED, TOO_LARGE = 0, 1, 2
"""The result of a conversion: all values exact, some rounded, or one out of range (infinite or NaN included)."""

_MAGNITUDE, _KEPT_BITS = np.int32(0x7FFFFFFF), np.int32(~0x1FFF)
_ALMOST_HALF, _ODD, _SHIFT = np.int32(0x0FFF), np.int32(1), np.int32(13)
# As float32 bits: 2**-14, the smallest normal float16; 0.5; and 2**16, the first power of two out of range.
_SMALLEST, _HALF_BITS, _BEYOND = np.int32(0x38800000), np.int32(0x3F000000), np.int32(0x47800000)
# The difference of the exponent biases, 127 - 15.
_BIAS = np.int32(112 << 10)
_SIGN_SHIFT, _SIGN = np.int32(16), np.int32(0x8000)
_HALF = np.float32(0.5)
# The compiler must not reorder additions: 0.5 would cancel.
_AS_WRITTEN = frozenset[str]()


@kernel("boolean(float32[::1], float32[::1])", fastmath=_AS_WRITTEN)
def round_to_float16(values: FloatArray, rounded: FloatArray) -> bool:
    """Round numbers to the nearest float16 value.

    Args:
        values: `[n]`.
        rounded: `[n]`, overwritten; it may be `values`.

    Returns:
        Whether all values are finite before and after.
    """
    bits = values.view(np.int32)
    worst = np.int32(0)
    for i in range(values.shape[0]):
        value = values[i]
        size = np.int32(bits[i] & _MAGNITUDE)
        normal = np.int32((size + _ALMOST_HALF + ((size >> _SHIFT) & _ODD)) & _KEPT_BITS)
        worst = max(worst, normal if size < _BEYOND else _BEYOND)
        small = (abs(value) + _HALF) - _HALF
        large = np.int32(normal | (bits[i] & np.int32(~_MAGNITUDE))).view(np.float32)
        rounded[i] = large if size >= _SMALLEST else np.copysign(small, value)
    finite: bool = worst < _BEYOND
    return finite


@kernel("int64(float32[::1], uint16[::1])", fastmath=_AS_WRITTEN)
def _to_float16_bits(values: FloatArray, converted: npt.NDArray[np.uint16]) -> int:
    bits = values.view(np.int32)
    worst, lost = np.int32(0), np.int32(0)
    for i in range(values.shape[0]):
        size = np.int32(bits[i] & _MAGNITUDE)
        normal = np.int32(size + _ALMOST_HALF + ((size >> _SHIFT) & _ODD))
        worst = max(worst, normal if size < _BEYOND else _BEYOND)
        # The bits of a subnormal float16 count steps of 2**-24.
        stepped = abs(values[i]) + _HALF
        small = np.int32(np.float32(stepped).view(np.int32) - _HALF_BITS)
        large = np.int32((normal >> _SHIFT) - _BIAS)
        changed = size & np.int32(0x1FFF) if size >= _SMALLEST else np.int32((stepped - _HALF) != abs(values[i]))
        lost = lost | changed
        sign = np.int32((bits[i] >> _SIGN_SHIFT) & _SIGN)
        converted[i] = np.uint16(sign | (large if size >= _SMALLEST else small))
    if worst >= _BEYOND:
        return TOO_LARGE
    return EXACT if lost == 0 else ROUNDED


def to_float16(values: FloatArray) -> tuple[npt.NDArray[np.float16], int]:
    """Convert numbers to float16, rounded to the nearest.

    Args:
        values: Float32 of any shape.

    Returns:
        float16 of the same shape, and `EXACT`, `ROUNDED` or `TOO_LARGE`; if `TOO_LARGE`, the numbers are unusable.
    """
    source = np.asarray(values, np.float32, order="C")
    if not source.flags.writeable:  # the kernel is compiled for writable arrays
        source = source.copy()
    converted = np.empty(source.shape, np.uint16)
    result: int = _to_float16_bits(source.reshape(-1), converted.reshape(-1))
    return converted.view(np.float16), result
