"""Whether the kernels run a bundle on this machine, and if not, why. It opens nothing but files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.runners.cpu.description import ModelDescription, Unsupported, describe
from edgekit.runners.cpu.library import Absent, Kernels, load

__all__ = ["Absent", "Ready", "look"]


@dataclass(frozen=True, slots=True)
class Ready:
    """They run it: what `CpuRunner` takes.

    Attributes:
        kernels: The library.
        description: Of the model.
    """

    kernels: Kernels
    description: ModelDescription


def look(folder: Path) -> Ready | Absent:
    """Look at the kernels of this machine and at a bundle of the `onnxruntime` dialect.

    Raises:
        BundleError: The graph is damaged, or of another dialect.
        ConfigError: $EDGEKIT_CPU_KERNELS names kernels that cannot be had.
    """
    kernels = load()
    if isinstance(kernels, Absent):
        return kernels
    try:
        return Ready(kernels, describe(folder))
    except Unsupported as error:
        return Absent(error.message)
