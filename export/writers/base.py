"""What a writer is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.float_rows import FloatRows
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["Artifact", "Progress", "Weights"]

Progress = Callable[[str], None]
"""Called with the name of each tensor once it is written."""


class Weights(Protocol):
    """The model's numbers, one tensor at a time: the writer asks, uses and forgets.

    Asking twice reads and quantizes twice; a writer asks once.
    """

    @property
    def order(self) -> Sequence[Linear]:
        """The matrices in the order in which they come fastest; empty where that of the model's layers is as good."""

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """A norm or a bias, float32 `[n]`."""

    def matrix(self, linear: Linear) -> GroupedTensor | npt.NDArray[np.float32]:
        """The weight of a linear layer or of the embedding, `[out, in]`.

        Returns:
            On the target's grid; or float32 `[out, in]` where the recipe leaves the tensor (or the whole
            model, `--recipe none`) in floating point.
        """

    def table(self, linear: Linear) -> GroupedTensor | FloatRows:
        """The same for a matrix that is large, the embedding or the output head: floats come row by row."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a writer made.

    Attributes:
        files: Paths relative to the bundle's folder, in the order written.
        config: The `config.json` to put beside them.
        sha256: Of those files that were hashed while they were written.
    """

    files: tuple[str, ...]
    config: dict[str, object]
    sha256: Mapping[str, str] = field(default_factory=dict)


class Writer(Protocol):
    """Writes an artifact into a folder."""

    def __call__(self, decoder: Decoder, weights: Weights, folder: Path, progress: Progress) -> Artifact:
        """Write the artifact; on failure the folder may hold a part, which the pipeline discards."""
