"""The loops of the recipes, compiled. They know groups of weights, and neither a tensor nor a format.

Floats are summed in whatever order is fastest, so that sums over a group are vectors; the same group gives the same
result wherever in a matrix it is. The last bits may differ from one processor to another.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.compiled import helper, kernel

__all__ = ["FLOAT", "SYMMETRIC", "ZERO_POINT", "fit_lines", "group_ranges", "nearest_codes"]

FloatArray = npt.NDArray[np.float32]
Line = tuple[np.float32, np.float32, np.float32]

SYMMETRIC, ZERO_POINT, FLOAT = 0, 1, 2
"""What a format allows for the offset of a group, as kernels are told it."""

# LLVM may add in another order and fuse a multiplication with an addition; infinities and NaN stay what they are.
_SUMS = frozenset({"reassoc", "contract", "nsz"})
# Where LLVM may reorder, it turns a multiplication by a reciprocal back into the division that it saves.
_AS_WRITTEN = frozenset({"contract"})

_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_NO_GAIN = np.float32(-1)
_NO_SPREAD = np.float32(1e-30)
_SIGN_SHIFT, _ALL_BUT_SIGN, _INFINITY = np.int32(31), np.int32(0x7FFFFFFF), np.int32(0x7F800000)


@helper()
def _ordered(bits: np.int32) -> np.int32:
    """Float bits as integers in the order of the floats, and back."""
    return np.int32(bits ^ np.int32(np.int32(bits >> _SIGN_SHIFT) & _ALL_BUT_SIGN))


@helper()
def _range(group: npt.NDArray[np.int32], ends: npt.NDArray[np.int32]) -> bool:
    """Put the bits of a group's smallest and largest float into `ends`; false if one is not finite.

    Integers, because LLVM makes no vectors of the minimum of floats that may be NaN, and NaN lies beyond infinity.
    """
    low, high = _ALL_BUT_SIGN, np.int32(-_ALL_BUT_SIGN)
    for j in range(group.shape[0]):
        place = _ordered(group[j])
        low = min(low, place)
        high = max(high, place)
    ends[0], ends[1] = _ordered(low), _ordered(high)
    return high < _INFINITY and low > _ordered(np.int32(-_ALL_BUT_SIGN - 1 | _INFINITY))


@kernel("boolean(float32[:,::1], float32[::1], float32[::1])")
def group_ranges(block: FloatArray, lows: FloatArray, highs: FloatArray) -> bool:
    """Find the smallest and the largest weight of each group.

    Args:
        block: `[groups, group_size]`.
        lows: `[groups]`, overwritten.
        highs: `[groups]`, overwritten.

    Returns:
        Whether all weights are finite; if not, work stopped at one that is not.
    """
    ends = np.empty(2, np.int32)
    values = ends.view(np.float32)
    bits = block.view(np.int32)
    for g in range(block.shape[0]):
        if not _range(bits[g], ends):
            return False
        lows[g], highs[g] = values[0], values[1]
    return True


@kernel("void(float32[:,::1], int64, float32[::1], float32[::1], uint8[:,::1])", fastmath=_AS_WRITTEN)
def nearest_codes(
    block: FloatArray, bits: int, scales: FloatArray, offsets: FloatArray, codes: npt.NDArray[np.uint8]
) -> None:
    """Give each weight the code whose value is nearest.

    Args:
        block: `[groups, group_size]`.
        bits: Of a code.
        scales: `[groups]`, all positive.
        offsets: `[groups]`.
        codes: Shaped like `block`, overwritten.
    """
    top = np.float32((1 << bits) - 1)
    for g in range(block.shape[0]):
        scale, offset = scales[g], offsets[g]
        weights, out = block[g], codes[g]
        for j in range(weights.shape[0]):
            # Divided, not multiplied by a reciprocal: that of a subnormal is infinite.
            code = np.rint((weights[j] - offset) / scale)
            out[j] = np.uint8(min(max(code, _ZERO), top))


@helper(fastmath=_AS_WRITTEN)
def _reciprocal(value: np.float32) -> np.float32:
    return _ONE / value


@helper(fastmath=_AS_WRITTEN)
def _centred_code(x: np.float32, inverse: np.float32, zero: np.float32, middle: np.float32) -> np.float32:
    return min(max(np.rint(x * inverse + zero), -middle), middle - _ONE)


@helper(fastmath=_SUMS)
def _start(span: np.float32, low: np.float32, high: np.float32, kind: int, middle: np.float32) -> tuple[
    np.float32, np.float32
]:
    """Scale and zero of the grid that spans this part of a group's range."""
    steps = _TWO * middle - _ONE
    if kind != ZERO_POINT:
        return _TWO * span / steps, (-_HALF if kind == FLOAT else _ZERO)
    width = high - low
    scale = (width if width > _ZERO else _TWO) * (span / steps)
    zero = np.rint(-middle - low * span / scale)
    return scale, min(max(zero, -middle), middle - _ONE)


@helper(fastmath=_SUMS)
def _step(
    x: FloatArray, x_sum: np.float32, scale: np.float32, zero: np.float32, kind: int, middle: np.float32
) -> Line:
    """Assign codes by a line and return the least-squares line through them, and what it explains of `sum(x**2)`."""
    inverse = _reciprocal(scale)
    c_sum, xc_sum, cc_sum = _ZERO, _ZERO, _ZERO
    for j in range(x.shape[0]):
        code = _centred_code(x[j], inverse, zero, middle)
        c_sum += code
        xc_sum += x[j] * code
        cc_sum += code * code
    n = np.float32(x.shape[0])
    part = _ONE / n
    mean = c_sum * part
    covariance, variance = xc_sum - x_sum * mean, cc_sum - c_sum * mean
    usable = (variance > _ZERO) & (covariance > _ZERO)
    slope = covariance / variance if usable else scale
    if kind == FLOAT:
        gain = covariance * slope + x_sum * x_sum * part if usable else _NO_GAIN
        return slope, mean - x_sum * part / slope, gain
    if kind == ZERO_POINT:
        zero = min(max(np.rint(mean - x_sum * part / slope), -middle), middle - _ONE)
    product = xc_sum - zero * x_sum
    square = cc_sum - _TWO * zero * c_sum + n * zero * zero
    usable = (square > _ZERO) & (product > _ZERO)
    slope = product / square if usable else scale
    return slope, zero, (product * slope if usable else _NO_GAIN)


@helper()
def _better(one: Line, other: Line) -> Line:
    """The line that explains more, chosen without a branch: no processor could guess it."""
    better = other[2] > one[2]
    return (
        other[0] if better else one[0],
        other[1] if better else one[1],
        other[2] if better else one[2],
    )


@kernel("boolean(float32[:,::1], int64, int64, float32[::1], int64, float32[::1], float32[::1])", fastmath=_SUMS)
def fit_lines(
    block: FloatArray,
    bits: int,
    kind: int,
    starts: FloatArray,
    refinements: int,
    scales: FloatArray,
    offsets: FloatArray,
) -> bool:
    """Find the scale and offset of each group that leave the least squared error; see `lsq` for the method.

    A group is normalised to lie within [-1, 1], so that no square overflows or vanishes, and codes are centred:
    `x ≈ scale * (code - zero)` with codes from `-2**(bits-1)`.

    Args:
        block: `[groups, group_size]`.
        bits: Of a code.
        kind: `SYMMETRIC`, `ZERO_POINT` or `FLOAT`.
        starts: How much of a group's range each starting grid spans.
        refinements: How often the best line is improved.
        scales: `[groups]`, overwritten; not yet rounded to what a format stores.
        offsets: `[groups]`, overwritten, likewise.

    Returns:
        Whether all weights are finite; if not, work stopped at one that is not.
    """
    middle = np.float32(1 << (bits - 1))
    ends = np.empty(2, np.int32)
    values = ends.view(np.float32)
    words = block.view(np.int32)
    x = np.empty(block.shape[1], np.float32)
    for g in range(block.shape[0]):
        if not _range(words[g], ends):
            return False
        low, high = values[0], values[1]
        if kind == FLOAT:
            # Halved first: a huge range must not overflow.
            center, half = high * _HALF + low * _HALF, high * _HALF - low * _HALF
        else:
            # These formats hold zero exactly; the group must not be moved.
            center, half = _ZERO, max(-low, high)
        # A group without a spread keeps one value; its scale does not matter.
        half = half if half > _NO_SPREAD else _ZERO
        inverse = _reciprocal(half) if half > _ZERO else _ZERO
        weights = block[g]
        x_sum = _ZERO
        for j in range(x.shape[0]):
            x[j] = (weights[j] - center) * inverse
            x_sum += x[j]
        low, high = min(low * inverse, _ZERO), max(high * inverse, _ZERO)
        scale, zero = _start(_ONE, low, high, kind, middle)
        best = (scale, zero, _NO_GAIN)
        for k in range(starts.shape[0]):
            scale, zero = _start(starts[k], low, high, kind, middle)
            best = _better(best, _step(x, x_sum, scale, zero, kind, middle))
        for _ in range(refinements):
            best = _better(best, _step(x, x_sum, best[0], best[1], kind, middle))
        scales[g] = best[0] * half
        # A code counts from zero in storage.
        offsets[g] = center - (best[1] + middle) * scales[g]
    return True
