"""The compiled loops of the quantization methods.

The line search processes sixteen groups side by side. Sums over a group are vectorized over its weights; computations
on the sums are vectorized over the groups. Floats are added in the fastest order: a group gives the same result
wherever it is in a matrix, but the last bits may differ between processors.

All kernels are in one file because numba's cache tracks only changes of the kernel's own file.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.quantization.jit import helper, kernel

__all__ = [
    "FLOAT",
    "SYMMETRIC",
    "ZERO_POINT",
    "fit_lines",
    "fit_weighted_lines",
    "group_ranges",
    "multiply_rows",
    "nearest_codes",
    "round_with_feedback",
]

FloatArray = npt.NDArray[np.float32]

SYMMETRIC, ZERO_POINT, FLOAT = 0, 1, 2
"""The kernels' codes for `Offset`."""

# LLVM may fuse a multiplication with an addition and change nothing else.
_AS_WRITTEN = frozenset({"contract"})
# LLVM may reorder additions; infinities and NaN are preserved. With reordering allowed it also turns a multiplication
# by a reciprocal back into a division, so those are in separate helpers.
_SUMS = frozenset({"reassoc", "contract", "nsz"})

_GROUPS = 16
# Outputs that `round_with_feedback` processes at a time: the errors of a group of 128 fill 32 KiB.
_OUTPUTS = 64
# Inputs that `multiply_rows` processes at a time: those of 18 tokens fill 144 KiB.
_INPUTS = 2048
# Rows of the state, one number per group. A single array: LLVM would have to assume that several overlap.
(
    _BEST_SCALE, _BEST_ZERO, _BEST_GAIN, _SCALE, _ZERO_AT, _INVERSE,
    _C_SUM, _XC_SUM, _CC_SUM, _X_SUM, _LOW, _HIGH, _CENTER, _SPREAD,
) = range(0, 14 * _GROUPS, _GROUPS)  # fmt: skip
_STATE = 14 * _GROUPS

_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_NO_GAIN = np.float32(-1)
_NO_SPREAD = np.float32(1e-30)
# With weights, a variance below this fraction of the largest squared code is rounding noise.
_NOISE = np.float32(1e-6)
_SIGN_SHIFT, _ALL_BUT_SIGN, _INFINITY = np.int32(31), np.int32(0x7FFFFFFF), np.int32(0x7F800000)
# The sort key of minus infinity; that of infinity is its bits.
_MINUS_INFINITY = np.int32(-0x7F800001)


@helper()
def _sort_key(bits: np.int32) -> np.int32:
    """Map float bits to integers that sort like the floats; its own inverse."""
    key: np.int32 = np.int32(bits ^ np.int32(np.int32(bits >> _SIGN_SHIFT) & _ALL_BUT_SIGN))
    return key


@helper()
def _range(group: npt.NDArray[np.int32], ends: npt.NDArray[np.int32]) -> bool:
    """Put the bits of a group's smallest and largest float into `ends`; false if one is not finite.

    Integers, because LLVM does not vectorize the minimum of floats that may be NaN; NaN sorts beyond infinity.
    """
    low, high = _ALL_BUT_SIGN, np.int32(-_ALL_BUT_SIGN)
    for j in range(group.shape[0]):
        key = _sort_key(group[j])
        low = min(low, key)
        high = max(high, key)
    ends[0], ends[1] = _sort_key(low), _sort_key(high)
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
        Whether all weights are finite; work stops at the first that is not.
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
    """Assign each weight the nearest code.

    Args:
        block: `[groups, group_size]`.
        bits: Bits per code.
        scales: `[groups]`, all positive.
        offsets: `[groups]`.
        codes: Shaped like `block`, overwritten.
    """
    top = np.float32((1 << bits) - 1)
    for g in range(block.shape[0]):
        scale, offset = scales[g], offsets[g]
        weights, out = block[g], codes[g]
        for j in range(weights.shape[0]):
            # A division, because the reciprocal of a subnormal is infinite.
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
    """Shift and scale a group into [-1, 1], and return its sum, weighted by `h` unless that is None."""
    total: np.float32 = _ZERO
    for j in range(x.shape[0]):
        x[j] = _normalised(weights[j], center, inverse)
        total += x[j] if h is None else h[j] * x[j]
    return total


@helper(fastmath=_SUMS)
def _sums(
    x: FloatArray, h: FloatArray | None, inverse: np.float32, zero: np.float32, middle: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    """Assign codes for a line; return the sums of the codes, of their products with `x`, and of their squares."""
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
    """Set each line to the grid that spans this fraction of the group's range."""
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
def _refit(s: FloatArray, n: np.float32, min_variance: np.float32, kind: int, middle: np.float32) -> None:
    """Find the least-squares line through each group's codes, and keep it if it explains more of `sum(x**2)`.

    `n` is the sum of a group's weights. Codes with a variance of at most `min_variance` determine no line. Choices are
    selects rather than branches, which would be unpredictable.
    """
    part = _ONE / n
    for g in range(_GROUPS):
        scale, zero = s[_SCALE + g], s[_ZERO_AT + g]
        x_sum, c_sum, xc_sum, cc_sum = s[_X_SUM + g], s[_C_SUM + g], s[_XC_SUM + g], s[_CC_SUM + g]
        mean = c_sum * part
        covariance, variance = xc_sum - x_sum * mean, cc_sum - c_sum * mean
        usable = (variance > min_variance) & (covariance > _ZERO)
        slope = covariance / variance if usable else scale
        if kind == FLOAT:
            gain = covariance * slope + x_sum * x_sum * part if usable else _NO_GAIN
            zero = mean - x_sum * part / slope
        else:
            if kind == ZERO_POINT:
                zero = min(max(np.rint(mean - x_sum * part / slope), -middle), middle - _ONE)
            product = xc_sum - zero * x_sum
            square = cc_sum - _TWO * zero * c_sum + n * zero * zero
            usable = (square > min_variance) & (product > _ZERO)
            slope = product / square if usable else scale
            gain = product * slope if usable else _NO_GAIN
        better = gain > s[_BEST_GAIN + g]
        s[_BEST_SCALE + g] = slope if better else s[_BEST_SCALE + g]
        s[_BEST_ZERO + g] = zero if better else s[_BEST_ZERO + g]
        s[_BEST_GAIN + g] = gain if better else s[_BEST_GAIN + g]


@helper(fastmath=_AS_WRITTEN)
def _init_best(s: FloatArray) -> None:
    """Initialize the best lines with the current ones, at no gain."""
    for g in range(_GROUPS):
        s[_BEST_SCALE + g], s[_BEST_ZERO + g], s[_BEST_GAIN + g] = s[_SCALE + g], s[_ZERO_AT + g], _NO_GAIN


@helper(fastmath=_AS_WRITTEN)
def _resume_best(s: FloatArray) -> None:
    """Continue from the best lines."""
    for g in range(_GROUPS):
        s[_SCALE + g], s[_ZERO_AT + g] = s[_BEST_SCALE + g], s[_BEST_ZERO + g]
        s[_INVERSE + g] = _ONE / s[_SCALE + g]


@helper(fastmath=_AS_WRITTEN)
def _set_range(s: FloatArray, g: int, low: np.float32, high: np.float32, kind: int) -> np.float32:
    """Record a group's center and range; return the reciprocal of its spread, or zero if it has none."""
    if kind == FLOAT:
        # Halved first, so that a huge range cannot overflow.
        center, half = high * _HALF + low * _HALF, high * _HALF - low * _HALF
    else:
        # These formats represent zero exactly, so the group must not be shifted.
        center, half = _ZERO, max(-low, high)
    # A group without spread has a single value; its scale does not matter.
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
    """The search with and without weights; numba drops the unused branches."""
    middle = np.float32(1 << (bits - 1))
    groups, n = block.shape
    # Without weights, sums of codes are integers, and exact.
    total, min_variance = (np.float32(n), _ZERO) if weights is None else (_ONE, _NOISE * middle * middle)
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
            inverse = _set_range(s, g, values[0], values[1], kind)
            s[_X_SUM + g] = _normalise(block[first + g], h, s[_CENTER + g], inverse, x[g])
        _start(s, _ONE, kind, middle)
        _init_best(s)
        for k in range(starts.shape[0] + refinements):
            if k < starts.shape[0]:
                _start(s, starts[k], kind, middle)
            else:
                _resume_best(s)
            for g in range(count):
                h = None if weights is None else weights[(first + g) % len(weights)]
                sums = _sums(x[g], h, s[_INVERSE + g], s[_ZERO_AT + g], middle)
                s[_C_SUM + g], s[_XC_SUM + g], s[_CC_SUM + g] = sums
            _refit(s, total, min_variance, kind, middle)
        for g in range(count):
            scale = s[_BEST_SCALE + g] * s[_SPREAD + g]
            scales[first + g] = scale
            # Stored codes start at zero.
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
    """Find each group's scale and offset with the smallest squared error.

    A group is normalized into [-1, 1], so that no square overflows or underflows, and codes are centred:
    `x ≈ scale * (code - zero)` with codes from `-2**(bits-1)`.

    Args:
        block: `[groups, group_size]`.
        bits: Bits per code.
        kind: `SYMMETRIC`, `ZERO_POINT` or `FLOAT`.
        starts: The fraction of a group's range that each starting grid spans.
        refinements: Number of refinement steps of the best line.
        scales: `[groups]`, overwritten; not yet rounded to the format's precision.
        offsets: `[groups]`, overwritten, likewise.

    Returns:
        Whether all weights are finite; work stops at the first that is not.
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
    """`fit_lines` with weighted squared errors.

    Args:
        block: `[groups, group_size]`.
        weights: `[period, group_size]`, not negative, each row sums to one; group `i` uses row `i % period`.
        bits: As in `fit_lines`, like the rest.
        kind: As there.
        starts: As there.
        refinements: As there.
        scales: As there.
        offsets: As there.

    Returns:
        Whether all weights of the block are finite.
    """
    found: bool = _search(block, weights, bits, kind, starts, refinements, scales, offsets)
    return found


@kernel(
    "void(float32[:,::1], float32[:,::1], uint8[:,::1], float32[:,::1], float32[::1], float32[::1], int64)",
    fastmath=_AS_WRITTEN,
)
def round_with_feedback(  # noqa: PLR0917  numba calls by position
    updated: FloatArray,
    error: FloatArray,
    codes: npt.NDArray[np.uint8],
    factor: FloatArray,
    scales: FloatArray,
    offsets: FloatArray,
    bits: int,
) -> None:
    """Round the inputs of one group one by one, feeding each one's error to the ones after it.

    Processes a few outputs at a time, so that their errors stay in the L1 cache, in a single thread: with so many
    small products, BLAS threads would wait for each other longer than they work.

    Args:
        updated: `[group_size, out]`, the weights compensated for the errors of all earlier groups; overwritten.
        error: `[group_size, out]`, the weights; overwritten with the rounding errors.
        codes: `[group_size, out]`, overwritten.
        factor: `[group_size, group_size]`, upper triangular: the feedback of an input's error to the ones after it.
        scales: `[out]`, all positive.
        offsets: `[out]`.
        bits: Bits per code.
    """
    top = np.float32((1 << bits) - 1)
    size, outputs = updated.shape
    for first in range(0, outputs, _OUTPUTS):
        last = min(first + _OUTPUTS, outputs)
        scale, offset = scales[first:last], offsets[first:last]
        for column in range(size):
            target = updated[column, first:last]
            for before in range(column):
                feedback, previous = factor[before, column], error[before, first:last]
                for i in range(last - first):
                    target[i] += feedback * previous[i]
            rest, out = error[column, first:last], codes[column, first:last]
            for i in range(last - first):
                code = np.rint((target[i] - offset[i]) / scale[i])
                code = max(_ZERO, code)
                code = min(top, code)
                out[i] = np.uint8(code)
                rest[i] -= code * scale[i] + offset[i]


@helper(fastmath=_SUMS)
def _dequantize(codes: npt.NDArray[np.uint8], scale: np.float32, offset: np.float32, out: FloatArray) -> None:
    for i in range(codes.shape[0]):
        out[i] = np.float32(codes[i]) * scale + offset


@helper(fastmath=_SUMS)
def _add_products(  # noqa: PLR0917  numba calls by position
    a: FloatArray, b: FloatArray, x: FloatArray, y: FloatArray, z: FloatArray, out: FloatArray, other: FloatArray
) -> None:
    """Add the products of two rows with three tokens."""
    ax = ay = az = bx = by = bz = _ZERO
    for i in range(a.shape[0]):
        ax += a[i] * x[i]
        ay += a[i] * y[i]
        az += a[i] * z[i]
        bx += b[i] * x[i]
        by += b[i] * y[i]
        bz += b[i] * z[i]
    out[0] += ax
    out[1] += ay
    out[2] += az
    other[0] += bx
    other[1] += by
    other[2] += bz


@kernel(
    "void(uint8[:,::1], float32[:,::1], float32[:,::1], float32[:,::1], float32[:,::1], float32[:,::1])",
    fastmath=_SUMS,
)
def multiply_rows(  # noqa: PLR0917  numba calls by position
    codes: npt.NDArray[np.uint8],
    scales: FloatArray,
    offsets: FloatArray,
    inputs: FloatArray,
    work: FloatArray,
    out: FloatArray,
) -> None:
    """Multiply a few tokens by rows of a quantized matrix, dequantizing two rows at a time.

    Args:
        codes: `[rows, in]`, an even number of rows.
        scales: `[rows, in / group]`.
        offsets: `[rows, in / group]`.
        inputs: `[tokens, in]`; the number of tokens must divide by three.
        work: Working memory, `[2, in]`.
        out: Receives the products, `[rows, tokens]`.
    """
    rows, width = codes.shape
    tokens, size = inputs.shape[0], width // scales.shape[1]
    step = max(size, _INPUTS // size * size)
    out[:] = _ZERO
    for start in range(0, width, step):
        stop = min(width, start + step)
        for row in range(0, rows, 2):
            for r in range(2):
                for at in range(start, stop, size):
                    group, end = at // size, at + size
                    scale, offset = scales[row + r, group], offsets[row + r, group]
                    _dequantize(codes[row + r, at:end], scale, offset, work[r, at:end])
            for t in range(0, tokens, 3):
                _add_products(
                    work[0, start:stop],
                    work[1, start:stop],
                    inputs[t, start:stop],
                    inputs[t + 1, start:stop],
                    inputs[t + 2, start:stop],
                    out[row, t : t + 3],
                    out[row + 1, t : t + 3],
                )
