"""A checkpoint's numbers, put on the target's grid one tensor at a time: the `Weights` that writers read."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.quantization.grid import GroupedTensor, as_floats
from edgekit.export.recipe import Recipe

__all__ = ["CheckpointWeights"]

FloatArray = npt.NDArray[np.float32]


class CheckpointWeights:
    """Reads, quantizes and forgets.

    Attributes:
        used: How many matrices each treatment was applied to, for the manifest: `{"lsq 4-bit, group 32": 210}`.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._tensors = checkpoint.tensors
        self.used: Counter[str] = Counter()

    def vector(self, name: str) -> FloatArray:
        """A norm or a bias, float32 `[n]`."""
        values = as_floats(self._checkpoint.read(name))
        if not np.isfinite(values).all():
            raise ExportError(f"tensor `{name}` has a value that is no finite number", hint="fetch it again")
        return values

    def matrix(self, linear: Linear) -> GroupedTensor | FloatArray:
        """The weight of a linear layer or of the embedding, `[out, in]`, as the recipe wants it."""
        name = linear.stored.weight
        stored = self._checkpoint.read(name, linear.rows.start, linear.rows.stop)
        tensor, treatment = self._recipe.apply(linear, stored, self._tensors[name].encoding)
        self.used[treatment] += 1
        return tensor
