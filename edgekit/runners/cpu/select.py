"""Checks whether the CPU kernels can run a bundle on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.runners.cpu.library import Kernels, Unavailable, load
from edgekit.runners.cpu.onnx_reader.match_model import ModelDescription, Unsupported, describe

__all__ = ["Available", "Unavailable", "probe"]


@dataclass(frozen=True, slots=True)
class Available:
    """The kernels can run the bundle. Holds the arguments for `CpuRunner`.

    Attributes:
        kernels: The loaded library.
        description: The bundle's model.
    """

    kernels: Kernels
    description: ModelDescription


def probe(folder: Path, dialect: str) -> Available | Unavailable:
    """Load the kernels and read the graph of a bundle.

    Args:
        folder: The bundle's folder.
        dialect: The dialect that its manifest declares: `onnxruntime`, `portable` or `native`.

    Raises:
        BundleError: The graph is damaged or in another dialect.
        ConfigError: $EDGEKIT_CPU_KERNELS names a variant that is not available.
    """
    kernels = load()
    if isinstance(kernels, Unavailable):
        return kernels
    try:
        return Available(kernels, describe(folder, dialect))
    except Unsupported as error:
        return Unavailable(error.message)
