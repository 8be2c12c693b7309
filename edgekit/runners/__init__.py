"""Runners execute an artifact: one file per backend, all behind the `Runner` protocol."""

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

_TENSORRT_DIALECTS = {"portable", "native"}


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
    runner: str = "auto",
) -> Runner:
    """Load the artifact of a bundle into the runner of its kind.

    ONNX graphs run on the CPU kernels if they are available and support the graph, otherwise on onnxruntime, which runs
    those for TensorRT slowly; the log gives the reason. Backends are imported lazily, so that a device needs only its
    own.

    Args:
        folder: The bundle's folder.
        kind: `onnx` or `mlx`: `Artifact.kind` of the manifest.
        dialect: `Artifact.dialect` of the manifest.
        context_length: Tokens that one sequence slot must hold.
        threads: Threads of CPU backends; default: one per usable core (`cores.py`).
        sequence_slots: Maximum number of sequences at a time.
        max_chunk: Maximum tokens of one slot in one step; default: the runner's.
        kv_bits: 8 quantizes the KV cache to 8 bits; None keeps it in the model's precision.
        shares_cores: Another runner computes between the steps of this one, so its threads must not spin.
        runner: `onnxruntime` does not try the CPU kernels. It computes graphs for TensorRT as TensorRT does, with FP16
            activations, but slowly; the kernels round activations to 8 bits.

    Raises:
        IncompatibleBundleError: No runner supports this kind.
        ConfigError: The runner has no 8-bit KV cache, or $EDGEKIT_CPU_KERNELS names a variant that is not available.
        BundleError: The artifact is damaged, or does not match the manifest.
        EdgekitError: `missing_extra`, if the backend's library is not installed.
        RunnerError: The artifact could not be loaded.
    """
    if kv_bits is not None and kind != "mlx":
        raise ConfigError(
            "this runner cannot quantize its KV cache",
            hint="leave out `kv_cache_bits`: it is for MLX bundles",
        )
    options: dict[str, Any] = {"context_length": context_length, "sequence_slots": sequence_slots}
    if max_chunk is not None:
        options["max_chunk"] = max_chunk
    try:
        if kind == "onnx":
            options |= {"threads": threads, "shares_cores": shares_cores}
            if dialect == "optimum" or runner == "onnxruntime":
                return _onnx_runner(dialect)(folder, **options)
            return _cpu_runner(folder, dialect, **options)
        if kind == "mlx":
            from edgekit.runners.mlx import MlxRunner

            return MlxRunner(folder, kv_bits=kv_bits, **options)
    except ModuleNotFoundError as error:
        module, extra = ("onnxruntime", "onnxruntime") if kind == "onnx" else ("mlx", "mlx")
        # A missing module of edgekit itself is a bug, not a missing extra.
        if error.name is None or error.name.partition(".")[0] == "edgekit":
            raise
        raise missing_extra(error.name or module, extra) from error
    raise IncompatibleBundleError(
        f"this edgekit cannot run an artifact of kind `{kind}`",
        hint="known kinds: mlx, onnx; update edgekit, or export again",
    )


def _onnx_runner(dialect: str) -> type[GraphRunner | OptimumRunner]:
    """Return the runner of a dialect over onnxruntime."""
    if dialect == "portable":
        from edgekit.runners.portable import PortableRunner

        return PortableRunner
    if dialect == "native":
        from edgekit.runners.native import NativeRunner

        return NativeRunner
    if dialect == "optimum":
        from edgekit.runners.optimum import OptimumRunner

        return OptimumRunner
    from edgekit.runners.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner


def _cpu_runner(folder: Path, dialect: str, *, shares_cores: bool, **options: Any) -> Runner:
    from edgekit.runners.cpu.select import Available, probe

    found = probe(folder, dialect if dialect in _TENSORRT_DIALECTS else "onnxruntime")
    if isinstance(found, Available):
        from edgekit.runners.cpu.onnx_reader.matcher import Unsupported
        from edgekit.runners.cpu.runner import CpuRunner

        try:
            # The kernels' threads sleep within a millisecond, so `shares_cores` makes no difference.
            opened = CpuRunner(found.description, found.kernels, **options)
        except Unsupported as error:
            reason = error.message
        else:
            logger.info("running on the CPU kernels: %s", found.kernels.variant)
            return opened
    else:
        reason = found.reason
    slowly = ", slowly," if dialect in _TENSORRT_DIALECTS else ""
    logger.info("running on onnxruntime%s instead of the CPU kernels: %s", slowly, reason)
    try:
        return _onnx_runner(dialect)(folder, shares_cores=shares_cores, **options)
    except EdgekitError as error:
        if error.code != "missing_extra":
            raise
        raise EdgekitError(
            f"neither the CPU kernels ({reason}) nor onnxruntime (not installed) can run this bundle",
            hint=f"{error.hint}; to check the kernels: edgekit doctor",
            code="missing_extra",
        ) from error
