"""Runners: run an artifact. One file per backend, behind the one `Runner` seam."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import ConfigError, IncompatibleBundleError, missing_extra
from edgekit.runners.base import Runner

__all__ = ["open_runner"]


def open_runner(
    folder: Path,
    kind: str,
    dialect: str = "",
    *,
    context_length: int,
    threads: int | None = None,
    sequence_slots: int = 1,
    kv_bits: int | None = None,
) -> Runner:
    """Load the artifact of a bundle into the runner of its kind.

    Backends are imported here and not before, so that a device needs only its own.

    Args:
        folder: The bundle's folder.
        kind: `onnx` or `mlx`: `Artifact.kind` of the manifest.
        dialect: `Artifact.dialect` of the manifest.
        context_length: Tokens one sequence slot must hold.
        threads: For backends on the CPU; None takes one per physical core.
        sequence_slots: Sequences held at the same time.
        kv_bits: 8 for a KV cache of 8 bits; None keeps it as the model computes it.

    Raises:
        IncompatibleBundleError: No runner knows this kind.
        ConfigError: The runner has no KV cache of 8 bits.
        EdgekitError: `missing_extra`, if the backend's library is not installed.
        RunnerError: The artifact could not be loaded.
    """
    if kv_bits is not None and kind != "mlx":
        raise ConfigError(
            "this runner keeps its KV cache as the model computes it",
            hint="leave out `generation.kv_cache_bits`: it is for MLX bundles",
        )
    try:
        if kind == "onnx" and dialect == "portable":
            from edgekit.runners.portable import PortableRunner

            return PortableRunner(folder, context_length=context_length, threads=threads, sequence_slots=sequence_slots)
        if kind == "onnx" and dialect == "native":
            from edgekit.runners.native import NativeRunner

            return NativeRunner(folder, context_length=context_length, threads=threads, sequence_slots=sequence_slots)
        if kind == "onnx" and dialect == "optimum":
            from edgekit.runners.optimum import OptimumRunner

            return OptimumRunner(folder, context_length=context_length, threads=threads, sequence_slots=sequence_slots)
        if kind == "onnx":
            from edgekit.runners.onnxruntime import OnnxRuntimeRunner

            return OnnxRuntimeRunner(
                folder, context_length=context_length, threads=threads, sequence_slots=sequence_slots
            )
        if kind == "mlx":
            from edgekit.runners.mlx import MlxRunner

            return MlxRunner(folder, context_length=context_length, sequence_slots=sequence_slots)
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
