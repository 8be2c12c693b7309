"""Builds the attention masks that TensorRT's graphs take as inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PADDING", "Masks"]

PADDING = -1
"""The position of a column that holds no key."""

# Masks a position out; the lowest finite FP16 number.
_MASKED = -65504.0


@dataclass(frozen=True, slots=True)
class Masks:
    """Makes the masks of each step.

    Attributes:
        full: Whether the graph has `attention_mask`, for layers with full attention.
        window: The size of the sliding window, the token itself included, if the graph has `window_mask`; else None.
        dtype: Element type of the masks.
    """

    full: bool
    window: int | None
    dtype: np.dtype[np.generic]

    @classmethod
    def of_graph(cls, inputs: Collection[str], metadata: Mapping[str, str], dtype: npt.DTypeLike) -> Masks:
        """Derive the masks from a graph's inputs and metadata."""
        window = metadata.get("edgekit.window")
        return cls("attention_mask" in inputs, None if window is None else int(window), np.dtype(dtype))

    def step(self, length: int, count: int, columns: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.generic]]:
        """Build the masks of a step, `[1, 1, count, total]`: 0 for visible positions, -65504 for others.

        Args:
            length: Tokens in the cache.
            count: New tokens.
            columns: Position of the key in each of the `total` columns; `PADDING` where there is none.
        """
        rows = np.arange(length, length + count)[:, None]
        causal = (columns != PADDING) & (columns <= rows)
        masks = {"attention_mask": causal} if self.full else {}
        if self.window is not None:
            masks["window_mask"] = causal & (columns > rows - self.window)
        return {name: np.where(mask, 0.0, _MASKED).astype(self.dtype)[None, None] for name, mask in masks.items()}
