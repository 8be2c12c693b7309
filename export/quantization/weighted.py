"""Least squares with a weight per input feature: the scales and offsets that matter most are fitted best.

The error of an output is the sum of the weights' errors times the inputs, so the squared error of a weight counts as
much as the mean square of its input does. AWQ (Lin et al. 2023, arXiv:2306.00978) shows that the inputs decide which
weights are salient; llama.cpp's importance matrix weighs its fits in the same way. The method is that of `lsq`:
Lloyd's steps from several clipped starts, every sum weighted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.quantization.blocks import refuse_infinite, store
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset

__all__ = ["fit_group", "nearest_codes", "weighted_lsq"]

FloatArray = npt.NDArray[np.float32]

# How much of a group's range a starting grid spans, and how often the best one is refined.
_STARTS = {4: (1.04, 0.97, 0.9, 0.83, 0.76, 0.69), 8: (1.0, 0.95)}
_REFINE = 3
# Elements fitted at a time: the block and its scratch stay in the second-level cache.
_SPAN = 1 << 16


def weighted_lsq(weight: FloatArray, grid: Grid, importance: FloatArray) -> GroupedTensor:
    """Quantize a matrix with scales and offsets that are best under weighted squares.

    Args:
        weight: Float32 `[out, in]`.
        grid: What the target's format can hold.
        importance: Float32 `[in]`, not negative: how much a squared error at an input counts, its mean square say.

    Raises:
        ExportError: The shapes do not fit each other or the groups, or a weight is not finite or too large.
    """
    out, width = weight.shape
    if width % grid.group_size or importance.shape != (width,):
        raise ExportError(f"{width} inputs, {importance.shape} importances and groups of {grid.group_size} do not fit")
    groups = width // grid.group_size
    codes = np.empty((out, width), dtype=np.uint8)
    scales = np.empty((out, groups), dtype=np.float32)
    offsets = np.empty((out, groups), dtype=np.float32)
    for group in range(groups):
        span = slice(group * grid.group_size, (group + 1) * grid.group_size)
        block = np.ascontiguousarray(weight[:, span].T, dtype=np.float32)
        scales[:, group], offsets[:, group] = fit_group(block, importance[span], grid)
        codes[:, span] = nearest_codes(block, scales[:, group], offsets[:, group], grid.bits).T
    return GroupedTensor(codes=codes, scales=scales, offsets=offsets, bits=grid.bits)


def fit_group(block: FloatArray, importance: FloatArray, grid: Grid) -> tuple[FloatArray, FloatArray]:
    """Choose the scales and offsets of one group of inputs for all rows of a matrix.

    Args:
        block: Float32 `[group_size, out]`.
        importance: Float32 `[group_size]`, not negative.
        grid: What the target's format can hold.

    Returns:
        Scales and offsets `[out]`, as the format stores them.

    Raises:
        ExportError: A weight is not finite or too large.
    """
    columns = max(1, _SPAN // block.shape[0])
    parts = [_fit(block[:, at : at + columns], importance, grid) for at in range(0, block.shape[1], columns)]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def nearest_codes(values: FloatArray, scales: FloatArray, offsets: FloatArray, bits: int) -> npt.NDArray[np.uint8]:
    """Codes of the points nearest to values `[..., out]`, given scales and offsets `[out]`."""
    steps = values - offsets
    steps /= scales
    np.rint(steps, out=steps)
    np.clip(steps, 0, (1 << bits) - 1, out=steps)
    return steps.astype(np.uint8)


@dataclass(slots=True)
class _Line:
    """`x ≈ scale * (code - zero)` for each row, codes centred, and how much of `sum(h * x**2)` it explains."""

    scale: FloatArray
    zero: FloatArray
    gain: FloatArray

    def keep_better(self, other: _Line) -> None:
        better = other.gain > self.gain
        for mine, theirs in ((self.scale, other.scale), (self.zero, other.zero), (self.gain, other.gain)):
            np.copyto(mine, theirs, where=better)


class _Fitter:
    """One group, normalised so that every row lies within [-1, 1] and the importances sum to one."""

    def __init__(self, block: FloatArray, importance: FloatArray, grid: Grid) -> None:
        self._offset = grid.offset
        self._middle = np.float32(1 << (grid.bits - 1))
        total = float(importance.sum())
        uniform = np.full(len(importance), 1 / len(importance))
        # A trace of the plain fit, so that inputs that were never active keep sensible weights.
        mixed = 0.999 * importance.astype(np.float64) / total + 0.001 * uniform if total > 0 else uniform
        self._h = mixed.astype(np.float32)
        low, high = block.min(axis=0), block.max(axis=0)
        # NaN wins in both, and an infinity is one of them.
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            refuse_infinite(block)
        if grid.offset is Offset.FLOAT:
            self.center = high / 2 + low / 2
            half = high / 2 - low / 2
        else:
            # These formats hold zero exactly; the group must not be moved.
            self.center = np.zeros_like(low)
            half = np.maximum(-low, high)
        self.half = np.where(half > np.float32(1e-30), half, np.float32(0))
        inverse = np.where(self.half > 0, 1 / np.where(self.half > 0, self.half, np.float32(1)), np.float32(0))
        self._x = block - self.center
        self._x *= inverse
        self._low, self._high = np.minimum(low * inverse, 0), np.maximum(high * inverse, 0)
        self._x_mean = self._h @ self._x
        self._codes = np.empty_like(self._x)
        self._scratch = np.empty_like(self._x)

    def start(self, span: float) -> _Line:
        steps = 2 * self._middle - 1
        scale = np.full_like(self.half, 2 * span / steps)
        zero = np.full_like(self.half, -0.5 if self._offset is Offset.FLOAT else 0.0)
        if self._offset is Offset.ZERO_POINT:
            width = self._high - self._low
            scale = np.where(width > 0, width, np.float32(2)) * np.float32(span / steps)
            zero = np.rint(-self._middle - self._low * np.float32(span) / scale)
            zero = np.clip(zero, -self._middle, self._middle - 1)
        return _Line(scale, zero, np.full_like(self.half, -1))

    def step(self, line: _Line) -> _Line:
        """Assign codes by `line` and return the weighted least-squares line through them."""
        codes, scratch = self._codes, self._scratch
        np.multiply(self._x, 1 / line.scale, out=codes)
        codes += line.zero
        np.rint(codes, out=codes)
        np.clip(codes, -self._middle, self._middle - 1, out=codes)
        mean = self._h @ codes
        product = self._h @ np.multiply(self._x, codes, out=scratch)
        square = self._h @ np.multiply(codes, codes, out=scratch)
        covariance, variance = product - self._x_mean * mean, square - mean * mean
        usable = (variance > 1e-6) & (covariance > 0)
        slope = np.where(usable, covariance / np.where(usable, variance, np.float32(1)), line.scale)
        if self._offset is Offset.FLOAT:
            gain = covariance * slope + self._x_mean * self._x_mean
            return _Line(
                slope, np.asarray(mean - self._x_mean / slope, np.float32), np.where(usable, gain, np.float32(-1))
            )
        zero: FloatArray = line.zero
        if self._offset is Offset.ZERO_POINT:
            nearest = np.rint(mean - self._x_mean / slope)
            zero = np.clip(nearest, -self._middle, self._middle - 1).astype(np.float32, copy=False)
        product = product - zero * self._x_mean
        square = square - 2 * zero * mean + zero * zero
        usable = (square > 1e-6) & (product > 0)
        ratio = product / np.where(usable, square, np.float32(1))
        scale = np.where(usable, ratio, line.scale)
        return _Line(scale, zero, np.where(usable, product * scale, np.float32(-1)))


def _fit(block: FloatArray, importance: FloatArray, grid: Grid) -> tuple[FloatArray, FloatArray]:
    fitter = _Fitter(block, importance, grid)
    best = fitter.start(1.0)
    for span in _STARTS.get(grid.bits, (1.0,)):
        best.keep_better(fitter.step(fitter.start(span)))
    for _ in range(_REFINE):
        best.keep_better(fitter.step(best))
    scales = best.scale * fitter.half
    # A code counts from zero in storage.
    offsets = fitter.center - (best.zero + np.float32(1 << (grid.bits - 1))) * scales
    return store(scales, offsets, grid)
