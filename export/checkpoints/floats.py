"""Converts float types narrower or wider than float32 to float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.checkpoints.base import FloatArray

__all__ = ["FLOATS", "widen"]

FLOATS = ("BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2")
"""Supported types, by safetensors' names."""


def _e4m3() -> FloatArray:
    """The value of each byte in E4M3: a sign, 4 exponent bits (bias 7), 3 fraction bits; no infinity.

    Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022, table 1: all ones after the sign is NaN.
    """
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    size = np.where(code & 127 == 127, np.nan, size)
    return np.copysign(size, np.where(code & 128, -1.0, 1.0)).astype(np.float32)


_E4M3 = _e4m3()


def widen(data: npt.NDArray[np.uint8], encoding: str, out: FloatArray) -> None:
    """Convert little-endian floats to float32; exact except for F64, which is rounded.

    Args:
        data: The bytes, contiguous.
        encoding: One of `FLOATS`.
        out: float32 `[n]`, overwritten. A double out of range becomes an infinity.
    """
    if encoding == "BF16":
        # bfloat16 is the upper half of a float32.
        np.left_shift(data.view("<u2"), np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    elif encoding == "F16":
        _widen_half(data.view("<u2"), out)
    elif encoding == "F8_E4M3":
        np.take(_E4M3, data, out=out)
    elif encoding == "F8_E5M2":
        # the upper half of a float16
        out[:] = (data.astype(np.uint16) << np.uint16(8)).view(np.float16)
    else:
        with np.errstate(over="ignore"):
            out[:] = data.view({"F32": "<f4", "F64": "<f8"}[encoding])


def _widen_half(halves: npt.NDArray[np.uint16], out: FloatArray) -> None:
    """Convert float16 to float32 by moving bits, several times as fast as numpy's conversion."""
    bits = out.view(np.uint32)
    np.left_shift(halves, np.uint32(16), out=bits, dtype=np.uint32)
    # Shift right by three, copying the sign, then mask the copies: exponent and fraction lie as in float32.
    np.right_shift(out.view(np.int32), 3, out=out.view(np.int32))
    bits &= np.uint32(0x8FFFE000)
    bits += np.uint32((127 - 15) << 23)
    # Exponents 0 and 31 mean something else (zeros and subnormals, infinities and NaN): numpy converts these.
    special = np.flatnonzero(((halves + np.uint16(0x0400)) & np.uint16(0x7800)) == 0)
    if special.size:
        out[special] = halves[special].view(np.float16)
