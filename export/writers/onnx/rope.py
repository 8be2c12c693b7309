"""RoPE tables, computed in float64 so that late positions are as accurate as early ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Rope

__all__ = ["rope_tables"]


def rope_tables(rope: Rope, positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return cosine and sine, float32 `[positions, dim / 2]`, of the angles `position * frequency`.

    Both include RoPE's attention factor, so rotating queries and keys also scales them.
    """
    angles = np.arange(positions, dtype=np.float64)[:, None] * np.array(rope.frequencies)
    factor = rope.attention_factor
    return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)
