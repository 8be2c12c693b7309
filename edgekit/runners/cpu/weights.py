"""Repacks matrices into the layout of the kernels, with scales and offsets in float16 where that loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from edgekit.runners.cpu.functions import Functions
from edgekit.runners.cpu.model import FloatArray, Matrix

__all__ = ["Weights", "fits_half", "stored_factors"]

# Relative rounding error of a normal float16 number: half a step of its 11 bits.
_ROUNDING = 2.0**-11
# Scales examined at a time.
_BATCH = 1 << 20


class Weights:
    """An arena of repacked matrices, freed together. Thread-safe.

    Args:
        call: The library.
        variant: The variant of the kernels that will read them.
        matrices: All matrices that will be added.

    Raises:
        MemoryError: The arena cannot be allocated.
    """

    def __init__(self, call: Functions, variant: str, matrices: Iterable[Matrix]) -> None:
        self._call = call
        self._variant = variant.encode()
        self._handles: list[int] = []
        # Sized for float32 scales, which few matrices need: pages that are never written take no memory.
        self._arena = call.arena_new(sum(self._bytes(matrix) for matrix in matrices))
        if not self._arena:
            raise MemoryError

    def matrix(self, matrix: Matrix) -> int:
        """Repack a matrix and return its address.

        Raises:
            MemoryError: It cannot be allocated.
            Unsupported: As `Matrix.factors`.
        """
        rows, columns = matrix.shape
        scales, offsets = matrix.factors()
        wide = not (fits_half(scales) and (offsets is None or fits_half(offsets)))
        codes = np.ascontiguousarray(matrix.codes)
        low = None if matrix.low is None else np.ascontiguousarray(matrix.low.codes)
        bias = None if matrix.bias is None else np.ascontiguousarray(matrix.bias, np.float32)
        handle = self._call.matrix_new(
            self._arena,
            self._variant,
            rows,
            columns,
            matrix.bits,
            matrix.group_size,
            matrix.by_columns,
            codes.ctypes.data,
            None if low is None else low.ctypes.data,
            scales.ctypes.data,
            None if offsets is None else offsets.ctypes.data,
            1 << (matrix.bits - 1),
            wide,
            None if bias is None else bias.ctypes.data,
        )
        if not handle:
            raise MemoryError
        self._handles.append(handle)
        return int(handle)

    def close(self) -> None:
        """Free all matrices."""
        for handle in self._handles:
            self._call.matrix_free(handle)
        self._handles.clear()
        self._call.arena_free(self._arena)
        self._arena = None

    def _bytes(self, matrix: Matrix) -> int:
        rows, columns = matrix.shape
        offsets, wide = matrix.may_have_offsets, 1
        return int(self._call.matrix_bytes(rows, columns, matrix.bits, matrix.group_size, offsets, wide))


def stored_factors(matrix: Matrix, release_pages: Callable[[], None] = lambda: None) -> tuple[bool, bool]:
    """Whether a matrix's scales and offsets stay float32 in the kernels, and whether it has offsets there.

    Reads a few rows at a time.

    Args:
        matrix: The matrix.
        release_pages: Called now and then to drop the mapped pages that were read.
    """
    groups, wide, has_offsets = matrix.scales.shape[1], False, False
    step = max(1, _BATCH // groups)
    for start in range(0, len(matrix.scales), step):
        scales, offsets = matrix.factors(slice(start, start + step))
        has_offsets = has_offsets or offsets is not None
        wide = wide or not (fits_half(scales) and (offsets is None or fits_half(offsets)))
        release_pages()
        if wide and has_offsets == matrix.may_have_offsets:
            break
    return wide, has_offsets


def fits_half(values: FloatArray) -> bool:
    """Whether float16 holds all values at full precision: none overflows, none loses bits as a subnormal."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16).astype(np.float32)
    return bool((np.abs(rounded - values) <= _ROUNDING * np.abs(values)).all())
