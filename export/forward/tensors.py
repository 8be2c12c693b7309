"""The weights of a forward pass, in float32, one tensor at a time.

`CheckpointTensors` reads a checkpoint; `edgekit.export.evaluation.readers` reads artifacts.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Linear
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.quantization.grid import as_floats

__all__ = ["CheckpointTensors", "FloatArray", "Tensors"]

FloatArray = npt.NDArray[np.float32]


class Tensors(Protocol):
    """A model's weights in float32. Nothing is cached: a second call reads again."""

    def norm(self, name: str) -> FloatArray:
        """A norm's weight as stored, `[n]`, by its Hugging Face name."""

    def bias(self, linear: Linear) -> FloatArray:
        """The bias of a linear layer that has one, `[out]`."""

    def matrix(self, linear: Linear, start: int = 0, stop: int | None = None) -> FloatArray:
        """The weight of a linear layer or of the embedding, `[out, in]`, or its rows `start:stop`."""


class CheckpointTensors:
    """A checkpoint's tensors: quantized ones are dequantized, parts of fused matrices are sliced out."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def norm(self, name: str) -> FloatArray:
        """See `Tensors.norm`."""
        return as_floats(self._checkpoint.read(name))

    def bias(self, linear: Linear) -> FloatArray:
        """See `Tensors.bias`."""
        rows = linear.rows
        return as_floats(self._checkpoint.read(linear.stored.bias_name, rows.start, rows.stop))

    def matrix(self, linear: Linear, start: int = 0, stop: int | None = None) -> FloatArray:
        """See `Tensors.matrix`."""
        first = linear.first_row
        end = linear.out_features if stop is None else stop
        return as_floats(self._checkpoint.read(linear.stored.weight, first + start, first + end))
