"""A float matrix read a few rows at a time: the embedding of a 7B model would take 2.2 GB in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["FloatRows"]

# Weights per part, for a matrix that is in memory already.
_SPAN = 1 << 21


@dataclass(frozen=True, slots=True)
class FloatRows:
    """A float matrix as a stream of rows.

    Attributes:
        shape: `(out, in)`.
        parts: Reads the matrix as consecutive parts, float32 `[rows, in]`.
    """

    shape: tuple[int, int]
    parts: Callable[[], Iterator[npt.NDArray[np.float32]]]

    @classmethod
    def of(cls, matrix: npt.NDArray[np.float32]) -> FloatRows:
        """Wrap a matrix that is in memory."""
        step = max(1, _SPAN // max(1, matrix.shape[1]))
        return cls(
            (matrix.shape[0], matrix.shape[1]),
            lambda: (matrix[start : start + step] for start in range(0, len(matrix), step)),
        )
