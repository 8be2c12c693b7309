"""Tables of rotary position embedding, computed in float64 so that late positions are as exact as early ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Rope

__all__ = ["rope_tables"]


def rope_tables(rope: Rope, positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return cosine and sine, float32 `[positions, dim / 2]`, of the angles `position * frequency`.

    Both are multiplied by the embedding's attention factor: queries and keys are then scaled as they are turned.
    """
    angles = np.arange(positions, dtype=np.float64)[:, None] * np.array(rope.frequencies)
    factor = rope.attention_factor
    return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)
