"""float32 to float16 and its values, compiled: numpy takes one number at a time. It knows no tensor and no format.

A float16 keeps 10 bits of fraction, so the 13 that a float32 has more are rounded off, to even where both are as near
(IEEE 754-2008, 4.3.1). Below 2**-14 its steps are all of 2**-24: so are those of a float32 between 0.5 and 1, and
adding 0.5 rounds to them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.compiled import kernel

__all__ = ["EXACT", "ROUNDED", "TOO_LARGE", "as_halves", "round_to_halves"]

FloatArray = npt.NDArray[np.float32]

EXACT, ROUNDED, TOO_LARGE = 0, 1, 2
"""How well float16 held some numbers: as they are, or to the nearest; or one is beyond it, infinite or NaN."""

_MAGNITUDE, _KEPT_BITS = np.int32(0x7FFFFFFF), np.int32(~0x1FFF)
_ALMOST_HALF, _ODD, _SHIFT = np.int32(0x0FFF), np.int32(1), np.int32(13)
# As float32 bits: 2**-14, the smallest normal float16; 0.5; and 2**16, the first power of two that there is none of.
_SMALLEST, _HALF_BITS, _BEYOND = np.int32(0x38800000), np.int32(0x3F000000), np.int32(0x47800000)
# What lies between the two exponents' biases, 127 - 15.
_BIAS = np.int32(112 << 10)
_SIGN_SHIFT, _SIGN = np.int32(16), np.int32(0x8000)
_HALF = np.float32(0.5)
# The compiler may add in no other order: 0.5 would cancel.
_AS_WRITTEN = frozenset[str]()


@kernel("boolean(float32[::1], float32[::1])", fastmath=_AS_WRITTEN)
def round_to_halves(values: FloatArray, rounded: FloatArray) -> bool:
    """Round numbers to the nearest that float16 has.

    Args:
        values: `[n]`.
        rounded: `[n]`, overwritten; it may be `values`.

    Returns:
        Whether all were finite and stayed so.
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
def _halves(values: FloatArray, halves: npt.NDArray[np.uint16]) -> int:
    bits = values.view(np.int32)
    worst, lost = np.int32(0), np.int32(0)
    for i in range(values.shape[0]):
        size = np.int32(bits[i] & _MAGNITUDE)
        normal = np.int32(size + _ALMOST_HALF + ((size >> _SHIFT) & _ODD))
        worst = max(worst, normal if size < _BEYOND else _BEYOND)
        # Counted in steps of 2**-24, which are what the bits of a small float16 count.
        stepped = abs(values[i]) + _HALF
        small = np.int32(np.float32(stepped).view(np.int32) - _HALF_BITS)
        large = np.int32((normal >> _SHIFT) - _BIAS)
        changed = size & np.int32(0x1FFF) if size >= _SMALLEST else np.int32((stepped - _HALF) != abs(values[i]))
        lost = lost | changed
        sign = np.int32((bits[i] >> _SIGN_SHIFT) & _SIGN)
        halves[i] = np.uint16(sign | (large if size >= _SMALLEST else small))
    if worst >= _BEYOND:
        return TOO_LARGE
    return EXACT if lost == 0 else ROUNDED


def as_halves(values: FloatArray) -> tuple[npt.NDArray[np.float16], int]:
    """Return numbers in float16, rounded to the nearest.

    Args:
        values: Float32 of any shape.

    Returns:
        float16 of the same shape, and `EXACT`, `ROUNDED` or `TOO_LARGE`; in that last case they are no use.
    """
    source = np.asarray(values, np.float32, order="C")
    if not source.flags.writeable:  # the kernel is compiled for arrays that may be written to
        source = source.copy()
    halves = np.empty(source.shape, np.uint16)
    kind: int = _halves(source.reshape(-1), halves.reshape(-1))
    return halves.view(np.float16), kind
