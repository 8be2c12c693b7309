"""Tables of rotary position embedding, computed in float64 so that late positions are as exact as early ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Rope

__all__ = ["rope_tables"]


def rope_tables(rope: Rope, positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return cosine and sine, float32 `[positions, dim / 2]`, of the angles `p * theta**(-2i/dim)`.

    Source: Su et al. 2021, arXiv:2104.09864.
    """
    frequencies = rope.theta ** (-np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
