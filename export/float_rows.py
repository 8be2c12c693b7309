"""A matrix in floating point that is read a few rows at a time: a 7B's token table would take 2.2 GB whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["FloatRows"]

# Weights at a time, where a matrix is in memory already.
_SPAN = 1 << 21


@dataclass(frozen=True, slots=True)
class FloatRows:
    """Rows on their way from a checkpoint to an artifact.

    Attributes:
        shape: `(out, in)`.
        parts: Reads the matrix: float32 `[rows, in]`, one part after the other.
    """

    shape: tuple[int, int]
    parts: Callable[[], Iterator[npt.NDArray[np.float32]]]

    @classmethod
    def of(cls, whole: npt.NDArray[np.float32]) -> FloatRows:
        """Return a matrix that is in memory."""
        step = max(1, _SPAN // max(1, whole.shape[1]))
        return cls(
            (whole.shape[0], whole.shape[1]),
            lambda: (whole[start : start + step] for start in range(0, len(whole), step)),
        )
