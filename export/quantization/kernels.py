"""The loops of the recipes, compiled. They know groups of weights, and neither a tensor nor a format.

The search for lines takes sixteen groups side by side. What is added up over a group is a vector of its weights; what
is then worked out from the sums is a vector of groups. Floats are added in whatever order is fastest: the same group
gives the same result wherever in a matrix it is, but the last bits may differ from one processor to another.

All of it is one file, because numba compiles anew when the file of a kernel changes, and looks no further.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.compiled import helper, kernel

__all__ = [
    "FLOAT",
    "SYMMETRIC",
    "ZERO_POINT",
    "fit_lines",
    "fit_weighted_lines",
    "group_ranges",
    "nearest_codes",
    "round_in_turn",
]

FloatArray = npt.NDArray[np.float32]

SYMMETRIC, ZERO_POINT, FLOAT = 0, 1, 2
"""What a format allows for the offset of a group, as the kernel is told it."""

# LLVM may fuse a multiplication with an addition, and changes nothing else.
_AS_WRITTEN = frozenset({"contract"})
# LLVM may add in another order; infinities and NaN stay what they are. Where it may reorder, it also turns a
# multiplication by a reciprocal back into the division that it saves: those are in helpers of their own.
_SUMS = frozenset({"reassoc", "contract", "nsz"})

_GROUPS = 16
# Outputs that `round_in_turn` takes at a time: the errors of a group of 128 fill 32 KiB.
_OUTPUTS = 64
# Rows of the state, a number for each group. One array: of several, LLVM would have to fear that they overlap.
(
    _BEST_SCALE, _BEST_ZERO, _BEST_GAIN, _SCALE, _ZERO_AT, _INVERSE,
    _C_SUM, _XC_SUM, _CC_SUM, _X_SUM, _LOW, _HIGH, _CENTER, _SPREAD,
) = range(0, 14 * _GROUPS, _GROUPS)  # fmt: skip
_STATE = 14 * _GROUPS

_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_NO_GAIN = np.float32(-1)
_NO_SPREAD = np.float32(1e-30)
# Where weighted sums leave less variance than this part of the largest squared code, rounding has made it.
_NOISE = np.float32(1e-6)
_SIGN_SHIFT, _ALL_BUT_SIGN, _INFINITY = np.int32(31), np.int32(0x7FFFFFFF), np.int32(0x7F800000)
# As a place in the order of the floats; so is infinity, whose place is its bits.
_MINUS_INFINITY = np.int32(-0x7F800001)


@helper()
def _ordered(bits: np.int32) -> np.int32:
    """Float bits as integers in the order of the floats, and back."""
    place: np.int32 = np.int32(bits ^ np.int32(np.int32(bits >> _SIGN_SHIFT) & _ALL_BUT_SIGN))
    return place


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
    finite: bool = high < _INFINITY and low > _MINUS_INFINITY
    return finite


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
def _centred_code(x: np.float32, inverse: np.float32, zero: np.float32, middle: np.float32) -> np.float32:
    code: np.float32 = min(max(np.rint(x * inverse + zero), -middle), middle - _ONE)
    return code


@helper(fastmath=_AS_WRITTEN)
def _normalised(weight: np.float32, center: np.float32, inverse: np.float32) -> np.float32:
    x: np.float32 = (weight - center) * inverse
    return x


@helper(fastmath=_SUMS)
def _normalise(
    weights: FloatArray, h: FloatArray | None, center: np.float32, inverse: np.float32, x: FloatArray
) -> np.float32:
    """Move and scale a group into [-1, 1], and return its sum; `h` is what each summand counts, None all alike."""
    total: np.float32 = _ZERO
    for j in range(x.shape[0]):
        x[j] = _normalised(weights[j], center, inverse)
        total += x[j] if h is None else h[j] * x[j]
    return total


@helper(fastmath=_SUMS)
def _sums(
    x: FloatArray, h: FloatArray | None, inverse: np.float32, zero: np.float32, middle: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    """Assign codes by a line, and return the sums of the codes, of their products with `x` and of their squares."""
    c_sum, xc_sum, cc_sum = _ZERO, _ZERO, _ZERO
    for j in range(x.shape[0]):
        code = _centred_code(x[j], inverse, zero, middle)
        counted = code if h is None else h[j] * code
        c_sum += counted
        xc_sum += x[j] * counted
        cc_sum += code * counted
    return c_sum, xc_sum, cc_sum


@helper(fastmath=_AS_WRITTEN)
def _start(s: FloatArray, span: np.float32, kind: int, middle: np.float32) -> None:
    """Set each line to the grid that spans this part of the group's range."""
    steps = _TWO * middle - _ONE
    for g in range(_GROUPS):
        if kind == ZERO_POINT:
            width = s[_HIGH + g] - s[_LOW + g]
            scale = (width if width > _ZERO else _TWO) * (span / steps)
            zero = min(max(np.rint(-middle - s[_LOW + g] * span / scale), -middle), middle - _ONE)
        else:
            scale = _TWO * span / steps
            zero = -_HALF if kind == FLOAT else _ZERO
        s[_SCALE + g], s[_ZERO_AT + g] = scale, zero
        s[_INVERSE + g] = _ONE / scale


@helper(fastmath=_AS_WRITTEN)
def _refit(s: FloatArray, n: np.float32, least: np.float32, kind: int, middle: np.float32) -> None:
    """Find the least-squares line through each group's codes, and keep it where it explains more of `sum(x**2)`.

    `n` is the sum of a group's weights. Codes that vary by no more than `least` have no line through them. Choices
    are selections and not branches, which no processor could guess.
    """
    part = _ONE / n
    for g in range(_GROUPS):
        scale, zero = s[_SCALE + g], s[_ZERO_AT + g]
        x_sum, c_sum, xc_sum, cc_sum = s[_X_SUM + g], s[_C_SUM + g], s[_XC_SUM + g], s[_CC_SUM + g]
        mean = c_sum * part
        covariance, variance = xc_sum - x_sum * mean, cc_sum - c_sum * mean
        usable = (variance > least) & (covariance > _ZERO)
        slope = covariance / variance if usable else scale
        if kind == FLOAT:
            gain = covariance * slope + x_sum * x_sum * part if usable else _NO_GAIN
            zero = mean - x_sum * part / slope
        else:
            if kind == ZERO_POINT:
                zero = min(max(np.rint(mean - x_sum * part / slope), -middle), middle - _ONE)
            product = xc_sum - zero * x_sum
            square = cc_sum - _TWO * zero * c_sum + n * zero * zero
            usable = (square > least) & (product > _ZERO)
            slope = product / square if usable else scale
            gain = product * slope if usable else _NO_GAIN
        better = gain > s[_BEST_GAIN + g]
        s[_BEST_SCALE + g] = slope if better else s[_BEST_SCALE + g]
        s[_BEST_ZERO + g] = zero if better else s[_BEST_ZERO + g]
        s[_BEST_GAIN + g] = gain if better else s[_BEST_GAIN + g]


@helper(fastmath=_AS_WRITTEN)
def _begin(s: FloatArray) -> None:
    """Make the lines the best ones, though they explain nothing yet."""
    for g in range(_GROUPS):
        s[_BEST_SCALE + g], s[_BEST_ZERO + g], s[_BEST_GAIN + g] = s[_SCALE + g], s[_ZERO_AT + g], _NO_GAIN


@helper(fastmath=_AS_WRITTEN)
def _again(s: FloatArray) -> None:
    """Go on from the best lines."""
    for g in range(_GROUPS):
        s[_SCALE + g], s[_ZERO_AT + g] = s[_BEST_SCALE + g], s[_BEST_ZERO + g]
        s[_INVERSE + g] = _ONE / s[_SCALE + g]


@helper(fastmath=_AS_WRITTEN)
def _place(s: FloatArray, g: int, low: np.float32, high: np.float32, kind: int) -> np.float32:
    """Note where a group lies; return the reciprocal of its spread, or zero where it has none."""
    if kind == FLOAT:
        # Halved first: a huge range must not overflow.
        center, half = high * _HALF + low * _HALF, high * _HALF - low * _HALF
    else:
        # These formats hold zero exactly; the group must not be moved.
        center, half = _ZERO, max(-low, high)
    # A group without a spread keeps one value; its scale does not matter.
    half = half if half > _NO_SPREAD else _ZERO
    inverse: np.float32 = _ONE / half if half > _ZERO else _ZERO
    s[_CENTER + g], s[_SPREAD + g] = center, half
    s[_LOW + g], s[_HIGH + g] = min(low * inverse, _ZERO), max(high * inverse, _ZERO)
    return inverse


@helper(fastmath=_AS_WRITTEN)
def _search(  # noqa: PLR0917  numba calls by position
    block: FloatArray,
    weights: FloatArray | None,
    bits: int,
    kind: int,
    starts: FloatArray,
    refinements: int,
    scales: FloatArray,
    offsets: FloatArray,
) -> bool:
    """Both searches; what only the other one needs, numba leaves out."""
    middle = np.float32(1 << (bits - 1))
    groups, n = block.shape
    # Without weights, sums of codes are whole numbers, and exact.
    total, least = (np.float32(n), _ZERO) if weights is None else (_ONE, _NOISE * middle * middle)
    words = block.view(np.int32)
    ends = np.empty(2, np.int32)
    values = ends.view(np.float32)
    x = np.empty((_GROUPS, n), np.float32)
    s = np.ones(_STATE, np.float32)
    for first in range(0, groups, _GROUPS):
        count = min(_GROUPS, groups - first)
        for g in range(count):
            if not _range(words[first + g], ends):
                return False
            h = None if weights is None else weights[(first + g) % len(weights)]
            inverse = _place(s, g, values[0], values[1], kind)
            s[_X_SUM + g] = _normalise(block[first + g], h, s[_CENTER + g], inverse, x[g])
        _start(s, _ONE, kind, middle)
        _begin(s)
        for k in range(starts.shape[0] + refinements):
            if k < starts.shape[0]:
                _start(s, starts[k], kind, middle)
            else:
                _again(s)
            for g in range(count):
                h = None if weights is None else weights[(first + g) % len(weights)]
                sums = _sums(x[g], h, s[_INVERSE + g], s[_ZERO_AT + g], middle)
                s[_C_SUM + g], s[_XC_SUM + g], s[_CC_SUM + g] = sums
            _refit(s, total, least, kind, middle)
        for g in range(count):
            scale = s[_BEST_SCALE + g] * s[_SPREAD + g]
            scales[first + g] = scale
            # A code counts from zero in storage.
            offsets[first + g] = s[_CENTER + g] - (s[_BEST_ZERO + g] + middle) * scale
    return True


@kernel("boolean(float32[:,::1], int64, int64, float32[::1], int64, float32[::1], float32[::1])", fastmath=_AS_WRITTEN)
def fit_lines(  # noqa: PLR0917  numba calls by position
    block: FloatArray,
    bits: int,
    kind: int,
    starts: FloatArray,
    refinements: int,
    scales: FloatArray,
    offsets: FloatArray,
) -> bool:
    """Find the scale and offset of each group that leave the least squared error.

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
    found: bool = _search(block, None, bits, kind, starts, refinements, scales, offsets)
    return found


@kernel(
    "boolean(float32[:,::1], float32[:,::1], int64, int64, float32[::1], int64, float32[::1], float32[::1])",
    fastmath=_AS_WRITTEN,
)
def fit_weighted_lines(  # noqa: PLR0917  numba calls by position
    block: FloatArray,
    weights: FloatArray,
    bits: int,
    kind: int,
    starts: FloatArray,
    refinements: int,
    scales: FloatArray,
    offsets: FloatArray,
) -> bool:
    """As `fit_lines`, where a squared error counts as much as a weight says.

    Args:
        block: `[groups, group_size]`.
        weights: `[period, group_size]`, not negative, each row's sum is one: of the group `i`, row `i % period`.
        bits: See `fit_lines`, and so for the rest.
        kind: See there.
        starts: See there.
        refinements: See there.
        scales: See there.
        offsets: See there.

    Returns:
        Whether all numbers of the block are finite.
    """
    found: bool = _search(block, weights, bits, kind, starts, refinements, scales, offsets)
    return found


@kernel(
    "void(float32[:,::1], float32[:,::1], uint8[:,::1], float32[:,::1], float32[::1], float32[::1], int64)",
    fastmath=_AS_WRITTEN,
)
def round_in_turn(  # noqa: PLR0917  numba calls by position
    updated: FloatArray,
    error: FloatArray,
    codes: npt.NDArray[np.uint8],
    factor: FloatArray,
    scales: FloatArray,
    offsets: FloatArray,
    bits: int,
) -> None:
    """Round the inputs of one group one after the other, feeding each one's error to those after it.

    Some outputs at a time, so that their errors stay in the nearest cache; and without a thread: for so many small
    products, those of a BLAS wait for each other longer than they work.

    Args:
        updated: `[group_size, out]`, the weights with the errors of all earlier groups made good; used up.
        error: `[group_size, out]`, the weights; becomes what rounding leaves of them.
        codes: `[group_size, out]`, overwritten.
        factor: `[group_size, group_size]`, upper triangular: of an input's error, what reaches those after it.
        scales: `[out]`, all positive.
        offsets: `[out]`.
        bits: Of a code.
    """
    top = np.float32((1 << bits) - 1)
    size, outputs = updated.shape
    for first in range(0, outputs, _OUTPUTS):
        last = min(first + _OUTPUTS, outputs)
        scale, offset = scales[first:last], offsets[first:last]
        for column in range(size):
            here = updated[column, first:last]
            for before in range(column):
                part, left = factor[before, column], error[before, first:last]
                for i in range(last - first):
                    here[i] += part * left[i]
            rest, out = error[column, first:last], codes[column, first:last]
            for i in range(last - first):
                code = np.rint((here[i] - offset[i]) / scale[i])
                code = max(_ZERO, code)
                code = min(top, code)
                out[i] = np.uint8(code)
                rest[i] -= code * scale[i] + offset[i]
