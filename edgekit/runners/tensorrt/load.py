"""Opens serialized engines, without a second copy of their weights in memory."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import RunnerError
from edgekit.runners.tensorrt.troubles import load_failed

if TYPE_CHECKING:
    from types import ModuleType

    import tensorrt as trt

__all__ = ["load_engines"]


def load_engines(
    library: ModuleType, logger: trt.ILogger, paths: Sequence[Path], errors: Callable[[], Sequence[str]] = tuple
) -> list[trt.ICudaEngine]:
    """Open engines, one after another.

    Each file is mapped, and its pages are given back when the library has copied the weights to the GPU's memory: on a
    Jetson, that is the same memory. A CUDA context must be current (`Device.activate`).

    Args:
        library: `tensorrt` or `tensorrt_rtx`.
        logger: The library logs to it; it must outlive the engines.
        paths: Serialized engines.
        errors: Returns what the library has logged since the last call.

    Raises:
        RunnerError: A file cannot be read, or the library does not take it.
    """
    runtime = library.Runtime(logger)
    engines = []
    for path in paths:
        try:
            with path.open("rb") as file:
                engine = _deserialize(runtime, file.fileno())
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise RunnerError(f"cannot read {path}: {error}", hint="build it again: edgekit build BUNDLE") from error
        if engine is None:
            raise load_failed(path, "; ".join(errors()) or "it gave no reason")
        engines.append(engine)
    return engines


def _deserialize(runtime: trt.Runtime, descriptor: int) -> trt.ICudaEngine | None:
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
        engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(data)
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # some file systems do not take advice
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return engine
