"""The interface of the artifact writers: `Weights` in, `Artifact` out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.quantization.float_rows import FloatRows
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["Artifact", "Progress", "Weights"]

Progress = Callable[[str], None]
"""Called with the name of each tensor once it is written."""


class Weights(Protocol):
    """The model's weights, one tensor at a time; the writer releases each before reading the next.

    Nothing is cached: reading a tensor twice quantizes it twice, so a writer reads each once.
    """

    @property
    def order(self) -> Sequence[Linear]:
        """The matrices in their fastest reading order; empty if the order of the layers is as fast."""

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """A norm or a bias, float32 `[n]`."""

    def matrix(self, linear: Linear) -> GroupedTensor | npt.NDArray[np.float32]:
        """The weight of a linear layer or of the embedding, `[out, in]`.

        Returns:
            The quantized tensor; or float32 `[out, in]` if the recipe keeps the tensor (with `--recipe none` the
            entire model) in floating point.
        """

    def table(self, linear: Linear) -> GroupedTensor | FloatRows:
        """The same for the large matrices, the embedding and the output head: floats come row by row."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A written artifact.

    Attributes:
        files: Paths relative to the bundle's folder, in the order written.
        config: The contents of its `config.json`.
        sha256: The hashes of the files that were hashed while they were written.
    """

    files: tuple[str, ...]
    config: dict[str, object]
    sha256: Mapping[str, str] = field(default_factory=dict)


class Writer(Protocol):
    """Writes an artifact into a folder."""

    def __call__(self, decoder: Decoder, weights: Weights, folder: Path, progress: Progress) -> Artifact:
        """Write the artifact. On failure the pipeline discards what was written."""
