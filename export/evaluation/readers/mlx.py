"""Reads the weights of an MLX artifact. The format is described in `edgekit.export.writers.mlx`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.checkpoints.safetensors import Shards
from edgekit.export.forward.tensors import FloatArray
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["MlxTensors"]


class MlxTensors:
    """`Tensors` of an MLX artifact.

    Args:
        folder: The folder of its safetensors files.

    Raises:
        ExportError: They are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._shards = Shards(folder)

    def norm(self, name: str) -> FloatArray:
        """See `Tensors.norm`."""
        return self._shards.read(name)

    def bias(self, linear: Linear) -> FloatArray:
        """See `Tensors.bias`."""
        rows = linear.rows
        return self._shards.read(linear.stored.bias_name, rows.start, rows.stop)

    def matrix(self, linear: Linear, start: int = 0, stop: int | None = None) -> FloatArray:
        """See `Tensors.matrix`."""
        stored = linear.stored
        first = linear.first_row + start
        last = linear.first_row + (linear.out_features if stop is None else stop)
        if f"{stored.name}.scales" not in self._shards.infos:
            return self._shards.read(stored.weight, first, last)
        words = self._shards.read_words(stored.weight, first, last)
        bits, rest = divmod(words.shape[1] * 32, linear.in_features)
        if rest or bits not in {4, 8}:
            raise ExportError(
                f"`{stored.weight}` has {words.shape[1]} words per row, which do not fit {linear.in_features} inputs"
            )
        packed = words.view(np.uint8)
        codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(words), -1)
        scales, offsets = (self._shards.read(f"{stored.name}.{part}", first, last) for part in ("scales", "biases"))
        return GroupedTensor(codes, scales, offsets, bits).dequantize()
