"""Data-free least squares: the scale and offset of each group that leave the smallest squared weight error.

The method is Lloyd's (Lloyd 1982, doi:10.1109/TIT.1982.1056489; Max 1960) for a quantizer whose points must be
evenly spaced: assign each weight to its nearest point, then move the grid to the least-squares line through
(code, weight); each step can only lower the error. Lloyd's method finds a local minimum, so it starts from
several grids that clip the group's range by different amounts and the best end wins. Searching over clipped
starts with a least-squares refit is what ggml's k-quants do (`make_qkx2_quants` in llama.cpp's ggml-quants.c);
HQQ (Badri & Shaji 2023) alternates in the same way under another norm, and OmniQuant (Shao et al. 2023,
arXiv:2308.13137) learns the clipping from data. No calibration data is used here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.export.quantization.blocks import group_range, put_on_grid, store
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset

__all__ = ["lsq"]

FloatArray = npt.NDArray[np.float32]

# How much of a group's range a starting grid spans, and how often the best one is refined. Measured on Gaussian
# and heavy-tailed weights: twice as many starts and three times the steps lower the squared error by about 1 %.
_STARTS = {4: (1.04, 0.97, 0.9, 0.83, 0.76), 8: (1.0,)}
_REFINE = 2


def lsq(weight: FloatArray, grid: Grid) -> GroupedTensor:
    """Quantize a matrix with least-squares scales and offsets.

    Args:
        weight: Float32 `[out, in]`.
        grid: What the target's format can hold.

    Raises:
        ExportError: The shape does not divide into groups, or a weight is not finite or too large.
    """
    return put_on_grid(weight, grid, _fit)


@dataclass(slots=True)
class _Line:
    """`x ≈ scale * (code - zero)` for each group, and how much of `sum(x**2)` it explains. All `[groups]`.

    Codes are centred here: they run from `-2**(bits-1)`.
    """

    scale: FloatArray
    zero: FloatArray
    gain: FloatArray

    def keep_better(self, other: _Line) -> None:
        better = other.gain > self.gain
        for mine, theirs in ((self.scale, other.scale), (self.zero, other.zero), (self.gain, other.gain)):
            np.copyto(mine, theirs, where=better)


class _Fitter:
    """One block, normalised so that every group lies within [-1, 1]: no square overflows or vanishes."""

    def __init__(self, block: FloatArray, grid: Grid) -> None:
        self._grid = grid
        self._middle = np.float32(1 << (grid.bits - 1))
        low, high = group_range(block)
        if grid.offset is Offset.FLOAT:
            self.center = high / 2 + low / 2
            half = high / 2 - low / 2
        else:
            # These formats hold zero exactly; the group must not be moved.
            self.center = np.zeros_like(low)
            half = np.maximum(-low, high)
        # A group without a spread keeps one value; its scale does not matter.
        self.half = np.where(half > np.float32(1e-30), half, np.float32(0))
        inverse = np.where(self.half > 0, 1 / np.where(self.half > 0, self.half, np.float32(1)), np.float32(0))
        self._x = block - self.center
        self._x *= inverse
        self._low, self._high = np.minimum(low * inverse, 0), np.maximum(high * inverse, 0)
        self._x_sum = self._x.sum(axis=0)
        self._codes = np.empty_like(self._x)
        self._scratch = np.empty_like(self._x)

    def start(self, span: float) -> _Line:
        """The grid that spans this part of the range; it explains nothing yet."""
        steps = 2 * self._middle - 1
        if self._grid.offset is Offset.FLOAT:
            scale = np.full_like(self.half, 2 * span / steps)
            zero = np.full_like(self.half, -0.5)
        elif self._grid.offset is Offset.SYMMETRIC:
            scale = np.full_like(self.half, 2 * span / steps)
            zero = np.zeros_like(self.half)
        else:
            width = self._high - self._low
            scale = np.where(width > 0, width, np.float32(2)) * np.float32(span / steps)
            zero = np.rint(-self._middle - self._low * np.float32(span) / scale)
            zero = np.clip(zero, -self._middle, self._middle - 1)
        return _Line(scale, zero, np.full_like(self.half, -1))

    def step(self, line: _Line) -> _Line:
        """Assign codes by `line` and return the least-squares line through them."""
        codes, scratch = self._codes, self._scratch
        np.multiply(self._x, 1 / line.scale, out=codes)
        codes += line.zero
        np.rint(codes, out=codes)
        np.maximum(codes, -self._middle, out=codes)
        np.minimum(codes, self._middle - 1, out=codes)
        c_sum = codes.sum(axis=0)
        xc_sum = np.multiply(self._x, codes, out=scratch).sum(axis=0)
        cc_sum = np.multiply(codes, codes, out=scratch).sum(axis=0)
        n = np.float32(codes.shape[0])
        mean = c_sum / n
        covariance, variance = xc_sum - self._x_sum * mean, cc_sum - c_sum * mean
        usable = (variance > 0) & (covariance > 0)
        variance = np.where(usable, variance, np.float32(1))
        if self._grid.offset is Offset.FLOAT:
            scale = np.where(usable, covariance / variance, line.scale)
            zero = mean - self._x_sum / n / scale
            gain = covariance * covariance / variance + self._x_sum * self._x_sum / n
            return _Line(scale, zero, np.where(usable, gain, np.float32(-1)))
        zero = line.zero
        if self._grid.offset is Offset.ZERO_POINT:
            slope = np.where(usable, covariance / variance, line.scale)
            zero = np.clip(np.rint(mean - self._x_sum / n / slope), -self._middle, self._middle - 1)
        product = xc_sum - zero * self._x_sum
        square = cc_sum - 2 * zero * c_sum + n * zero * zero
        usable = (square > 0) & (product > 0)
        square = np.where(usable, square, np.float32(1))
        scale = np.where(usable, product / square, line.scale)
        return _Line(scale, zero, np.where(usable, product * product / square, np.float32(-1)))


def _fit(block: FloatArray, grid: Grid) -> tuple[FloatArray, FloatArray]:
    fitter = _Fitter(block, grid)
    best = fitter.start(1.0)
    for span in _STARTS.get(grid.bits, (1.0,)):
        best.keep_better(fitter.step(fitter.start(span)))
    for _ in range(_REFINE):
        best.keep_better(fitter.step(best))
    scales = best.scale * fitter.half
    # A code counts from zero in storage.
    offsets = fitter.center - (best.zero + np.float32(1 << (grid.bits - 1))) * scales
    return store(scales, offsets, grid)
