"""Lists every runner for a bundle, where `open_runner` chooses one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgekit.bundle.bundle import Bundle
from edgekit.errors import RunnerError, missing_extra
from edgekit.runners import open_runner
from edgekit.runners.base import Runner

__all__ = ["Candidate", "candidates"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A runner that may run a bundle.

    Attributes:
        name: Its name in messages.
        open: Opens it, or raises an `EdgekitError` that says why it cannot run the bundle on this machine.
    """

    name: str
    open: Callable[[], Runner]


def candidates(bundle: Bundle, *, context_length: int, sequence_slots: int = 1) -> Iterator[Candidate]:
    """Yield the runners for a bundle's kind of artifact, the preferred one first.

    Args:
        bundle: The bundle.
        context_length: Tokens that one sequence slot must hold.
        sequence_slots: Maximum number of sequences at a time.
    """
    kind, dialect = bundle.manifest.artifact.kind, bundle.manifest.artifact.dialect
    options: dict[str, Any] = {"context_length": context_length, "sequence_slots": sequence_slots}
    if (kind, dialect) == ("onnx", "onnxruntime"):
        yield Candidate("the CPU kernels", partial(_cpu_kernels, bundle.path, options))
        yield Candidate("onnxruntime", partial(_onnxruntime, bundle.path, options))
    else:
        name = "MLX" if kind == "mlx" else f"onnxruntime, checking `{dialect}`"
        yield Candidate(name, partial(open_runner, bundle.path, kind, dialect, **options))


def _cpu_kernels(folder: Path, options: dict[str, Any]) -> Runner:
    from edgekit.runners.cpu.runner import CpuRunner
    from edgekit.runners.cpu.select import Available, probe

    found = probe(folder)
    if not isinstance(found, Available):
        raise RunnerError(found.reason)
    return CpuRunner(found.description, found.kernels, **options)


def _onnxruntime(folder: Path, options: dict[str, Any]) -> Runner:
    try:
        from edgekit.runners.onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(folder, **options)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "edgekit":
            raise
        raise missing_extra(error.name, "onnxruntime") from error
