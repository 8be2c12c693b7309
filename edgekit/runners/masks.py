"""The attention masks that graphs for TensorRT are fed: which token may look at which. It knows no runtime."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Masks"]

# Hides a position from attention; the lowest finite FP16 number.
_HIDDEN = -65504.0


@dataclass(frozen=True, slots=True)
class Masks:
    """Makes the masks of each step.

    Attributes:
        full: The graph has `attention_mask`, for layers that see all tokens before one.
        window: The graph has `window_mask`, for layers where a token sees this many tokens, itself included; None
            where it has not.
        dtype: Of the masks.
    """

    full: bool
    window: int | None
    dtype: np.dtype[np.generic]

    @classmethod
    def of_graph(cls, inputs: Collection[str], metadata: Mapping[str, str], dtype: npt.DTypeLike) -> Masks:
        """Read from a graph's inputs and metadata what it wants."""
        window = metadata.get("edgekit.window")
        return cls("attention_mask" in inputs, None if window is None else int(window), np.dtype(dtype))

    def step(self, held: int, count: int) -> dict[str, npt.NDArray[np.generic]]:
        """The masks of a step, `[1, 1, count, held + count]`: 0 where a token may look, and elsewhere -65504.

        Args:
            held: Tokens in the cache.
            count: New tokens.
        """
        seen = np.tri(count, held + count, held, dtype=bool)
        masks = {"attention_mask": seen} if self.full else {}
        if self.window is not None:
            masks["window_mask"] = seen & ~np.tri(count, held + count, held - self.window, dtype=bool)
        return {name: np.where(mask, 0.0, _HIDDEN).astype(self.dtype)[None, None] for name, mask in masks.items()}
