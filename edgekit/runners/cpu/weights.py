"""Matrices in the kernels' form, and when their factors may be float16. It knows no layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from edgekit.runners.cpu.functions import Functions
from edgekit.runners.cpu.model import FloatArray, Matrix

__all__ = ["Weights", "fits_half", "is_wide"]

# Relative error that rounding a scale to float16 may make: half a step of its 11 bits.
_ROUNDING = 2.0**-11
# Of a matrix, looked at at a time.
_FACTORS = 1 << 20


class Weights:
    """Makes matrices and frees them together; may be used by several threads.

    Args:
        call: The library.
        variant: The kernels that will read them.
        matrices: All that will be made.

    Raises:
        MemoryError: There is no memory for them.
    """

    def __init__(self, call: Functions, variant: str, matrices: Iterable[Matrix]) -> None:
        self._call = call
        self._variant = variant.encode()
        self._made: list[int] = []
        # Room for wide factors, which few have: what is not written takes no memory.
        self._arena = call.arena_new(sum(self._bytes(matrix) for matrix in matrices))
        if not self._arena:
            raise MemoryError

    def matrix(self, matrix: Matrix) -> int:
        """Return the address of a matrix in the kernels' form.

        Raises:
            MemoryError: There is no memory for it.
        """
        rows, columns = matrix.shape
        scales = np.ascontiguousarray(matrix.scales, np.float32)
        offsets = np.ascontiguousarray(matrix.offsets(), np.float32) if _has_offsets(matrix) else None
        wide = not (fits_half(scales) and (offsets is None or fits_half(offsets)))
        codes = np.ascontiguousarray(matrix.codes)
        bias = None if matrix.bias is None else np.ascontiguousarray(matrix.bias, np.float32)
        made = self._call.matrix_new(
            self._arena,
            self._variant,
            rows,
            columns,
            matrix.bits,
            matrix.group_size,
            codes.ctypes.data,
            scales.ctypes.data,
            None if offsets is None else offsets.ctypes.data,
            1 << (matrix.bits - 1),
            wide,
            None if bias is None else bias.ctypes.data,
        )
        if not made:
            raise MemoryError
        self._made.append(made)
        return int(made)

    def close(self) -> None:
        """Free them."""
        for made in self._made:
            self._call.matrix_free(made)
        self._made.clear()
        self._call.arena_free(self._arena)
        self._arena = None

    def _bytes(self, matrix: Matrix) -> int:
        rows, columns = matrix.shape
        own, wide = _has_offsets(matrix), 1
        return int(self._call.matrix_bytes(rows, columns, matrix.bits, matrix.group_size, own, wide))


def _has_offsets(matrix: Matrix) -> bool:
    """Whether its groups have offsets of their own; else all codes are less the middle."""
    return matrix.zero_points is not None or matrix.rest is not None


def is_wide(matrix: Matrix, let_go: Callable[[], None] = lambda: None) -> bool:
    """Whether a matrix's factors stay float32 in the kernels; read a few rows at a time.

    Args:
        matrix: The matrix.
        let_go: Called now and then, to give back the memory of what was read.
    """
    groups = matrix.scales.shape[1]
    step = max(1, _FACTORS // groups)
    for start in range(0, len(matrix.scales), step):
        rows = slice(start, start + step)
        points, rest = matrix.zero_points, matrix.rest
        part = replace(
            matrix,
            scales=matrix.scales[rows],
            zero_points=None if points is None else points[rows],
            rest=None if rest is None else rest[rows],
        )
        if not (fits_half(part.scales) and (not _has_offsets(part) or fits_half(part.offsets()))):
            return True
        let_go()
    return False


def fits_half(values: FloatArray) -> bool:
    """Whether float16 says these no worse than it says any number: none too large, none so small that bits are lost."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16).astype(np.float32)
    return bool((np.abs(rounded - values) <= _ROUNDING * np.abs(values)).all())
