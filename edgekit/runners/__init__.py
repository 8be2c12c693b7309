"""Runners: run an artifact. One file per backend, behind the one `Runner` seam."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ConfigError, EdgekitError, IncompatibleBundleError, missing_extra
from edgekit.runners.base import Runner

if TYPE_CHECKING:
    from edgekit.runners.graph_runner import GraphRunner
    from edgekit.runners.optimum import OptimumRunner

__all__ = ["open_runner"]

logger = logging.getLogger(__name__)

# Graphs that onnxruntime alone runs here.
_DIALECTS = {"portable", "native", "optimum"}


def open_runner(
    folder: Path,
    kind: str,
    dialect: str = "",
    *,
    context_length: int,
    threads: int | None = None,
    sequence_slots: int = 1,
    max_chunk: int | None = None,
    kv_bits: int | None = None,
    shares_cores: bool = False,
) -> Runner:
    """Load the artifact of a bundle into the runner of its kind.

    Of the `onnxruntime` dialect that is the kernels of our own, where they are there and know the graph; else
    onnxruntime, and the log says why. Backends are imported here and not before, so that a device needs only its own.

    Args:
        folder: The bundle's folder.
        kind: `onnx` or `mlx`: `Artifact.kind` of the manifest.
        dialect: `Artifact.dialect` of the manifest.
        context_length: Tokens one sequence slot must hold.
        threads: For backends on the CPU; None takes one per physical core.
        sequence_slots: Sequences held at the same time.
        max_chunk: Most tokens of one slot in one step; None takes what suits the runner.
        kv_bits: 8 for a KV cache of 8 bits; None keeps it as the model computes it.
        shares_cores: Another runner computes in between the steps of this one: its threads must not wait busily.

    Raises:
        IncompatibleBundleError: No runner knows this kind.
        ConfigError: The runner has no KV cache of 8 bits, or $EDGEKIT_CPU_KERNELS names what is not there.
        BundleError: The artifact is damaged, or another than the manifest says.
        EdgekitError: `missing_extra`, if the backend's library is not installed.
        RunnerError: The artifact could not be loaded.
    """
    if kv_bits is not None and kind != "mlx":
        raise ConfigError(
            "this runner keeps its KV cache as the model computes it",
            hint="leave out `generation.kv_cache_bits`: it is for MLX bundles",
        )
    options: dict[str, Any] = {"context_length": context_length, "sequence_slots": sequence_slots}
    if max_chunk is not None:
        options["max_chunk"] = max_chunk
    try:
        if kind == "onnx":
            if dialect in _DIALECTS:
                return _onnx_runner(dialect)(folder, threads=threads, shares_cores=shares_cores, **options)
            return _for_plain_cpus(folder, threads=threads, shares_cores=shares_cores, **options)
        if kind == "mlx":
            from edgekit.runners.mlx import MlxRunner

            return MlxRunner(folder, kv_bits=kv_bits, **options)
    except ModuleNotFoundError as error:
        module, extra = ("onnxruntime", "onnxruntime") if kind == "onnx" else ("mlx", "mlx")
        # A module of ours that is missing is a fault, not a choice of extras.
        if error.name is None or error.name.partition(".")[0] == "edgekit":
            raise
        raise missing_extra(error.name or module, extra) from error
    raise IncompatibleBundleError(
        f"this edgekit cannot run an artifact of kind `{kind}`",
        hint="known kinds: mlx, onnx; update edgekit, or export again",
    )


def _onnx_runner(dialect: str) -> type[GraphRunner | OptimumRunner]:
    if dialect == "portable":
        from edgekit.runners.portable import PortableRunner

        return PortableRunner
    if dialect == "native":
        from edgekit.runners.native import NativeRunner

        return NativeRunner
    from edgekit.runners.optimum import OptimumRunner

    return OptimumRunner


def _for_plain_cpus(folder: Path, *, shares_cores: bool, **options: Any) -> Runner:
    from edgekit.runners.cpu.choice import Ready, look

    found = look(folder)
    if isinstance(found, Ready):
        from edgekit.runners.cpu.runner import CpuRunner

        # Their threads go to sleep within a millisecond, whoever shares the cores.
        runner = CpuRunner(found.description, found.kernels, **options)
        logger.info("the CPU kernels run it: %s", found.kernels.variant)
        return runner
    from edgekit.runners.onnxruntime import OnnxRuntimeRunner

    logger.info("onnxruntime runs it, and not the CPU kernels: %s", found.reason)
    try:
        return OnnxRuntimeRunner(folder, shares_cores=shares_cores, **options)
    except EdgekitError as error:
        if error.code != "missing_extra":
            raise
        raise EdgekitError(
            f"neither the CPU kernels ({found.reason}) nor onnxruntime, which is not installed, can run this",
            hint=f"{error.hint}; what the kernels lack: edgekit doctor",
            code="missing_extra",
        ) from error
