"""The runners that can run an artifact, in the order in which they are tried.

A candidate offers to run an artifact, or raises an error that says why it cannot here. An offer is cheap: it reads the
graph's description, but no weights. `edgekit.runners.choose_runner` takes the first one that also loads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from edgekit.errors import IncompatibleBundleError, RunnerError, import_failure, missing_extra
from edgekit.runners.base import KvShare, Runner

__all__ = ["Candidate", "LoadOptions", "Offer", "candidates"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a runner is loaded with: the arguments of `open_runner`, which documents them."""

    context_length: int
    threads: int | None = None
    sequence_slots: int = 1
    max_chunk: int | None = None
    kv_bits: int | None = None
    shares_cores: bool = False
    kv_share: KvShare | None = None

    def common(self) -> dict[str, Any]:
        """Arguments of every runner."""
        chunk = {} if self.max_chunk is None else {"max_chunk": self.max_chunk}
        return {"context_length": self.context_length, "sequence_slots": self.sequence_slots, **chunk}

    def on_cpu(self) -> dict[str, Any]:
        """Arguments of every runner that computes on the CPU."""
        return {**self.common(), "threads": self.threads}


@dataclass(frozen=True, slots=True)
class Offer:
    """A candidate can run the artifact here.

    Attributes:
        label: The runner and its variant, for people: `the CPU kernels, avx2`.
        load: Loads the weights. Raises `RunnerError` if that fails.
    """

    label: str
    load: Callable[[LoadOptions], Runner]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run an artifact.

    Attributes:
        name: As in `runner:` of the configuration.
        title: For people.
        extra: The extra of edgekit that installs what it needs.
        make: Makes `offer`'s offer; may raise `ImportError`, as may the offer's `load`.
    """

    name: str
    title: str
    extra: str
    make: Callable[[Path, str], Offer]

    def offer(self, folder: Path, dialect: str) -> Offer:
        """Offer to run an artifact.

        Args:
            folder: The bundle's folder.
            dialect: The artifact's dialect.

        Raises:
            RunnerError: It cannot run here; the message is the reason.
            EdgekitError: `missing_extra` or `broken_library`: a library is not installed, or cannot be imported.
            BundleError: The artifact is damaged.
            ConfigError: A setting is wrong.
        """
        offer = self._importing(lambda: self.make(folder, dialect))
        return Offer(offer.label, lambda options: self._importing(lambda: offer.load(options)))

    def _importing(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except ImportError as error:
            failure = import_failure(error, self.extra)
            if failure is None:
                raise
            raise failure from error


def candidates(kind: str, dialect: str) -> tuple[Candidate, ...]:
    """Return the candidates for an artifact, the preferred one first.

    Args:
        kind: `Artifact.kind` of the manifest.
        dialect: `Artifact.dialect` of the manifest.

    Raises:
        IncompatibleBundleError: This edgekit runs no artifact of this kind.
    """
    if kind == "mlx":
        return (_MLX,)
    if kind == "onnx":
        # The readers of the `onnxruntime` dialect say which other dialect a graph is in.
        return _ONNX.get(dialect, _ONNX["onnxruntime"])
    raise IncompatibleBundleError(
        f"this edgekit cannot run an artifact of kind `{kind}`",
        hint="known kinds: mlx, onnx; update edgekit, or export again",
    )


def _tensorrt(folder: Path, dialect: str) -> Offer:  # noqa: ARG001
    from edgekit.runners.tensorrt.open import check_driver, find_engine, open_engine

    # First, because no engine helps without it: one for another machine may be in the store, or none was built.
    check_driver()
    bundle, stored = find_engine(folder)

    def load(options: LoadOptions) -> Runner:
        return open_engine(bundle, stored, **options.common(), kv_share=options.kv_share)

    return Offer(f"{stored.engine.library} {stored.engine.version}, {stored.engine.context_length} tokens", load)


def _cpu(folder: Path, dialect: str) -> Offer:
    from edgekit.runners.cpu.select import Unavailable, probe

    found = probe(folder, dialect if dialect in _ONNX else "onnxruntime")
    if isinstance(found, Unavailable):
        raise RunnerError(found.reason)

    def load(options: LoadOptions) -> Runner:
        from edgekit.runners.cpu.runner import CpuRunner

        # The kernels' threads sleep within a millisecond, so `shares_cores` makes no difference.
        return CpuRunner(found.description, found.kernels, **options.on_cpu())

    return Offer(f"the CPU kernels, {found.kernels.variant}", load)


def _cuda(folder: Path, dialect: str) -> Offer:
    from edgekit.runners.cuda_provider import cuda_provider

    found = cuda_provider()
    if found.reason is not None:
        raise RunnerError(found.reason, hint=found.hint)

    def load(options: LoadOptions) -> Runner:
        from edgekit.runners.on_device import NativeOnDevice, PortableOnDevice

        runner = PortableOnDevice if dialect == "portable" else NativeOnDevice
        return runner(folder, **options.common())

    return Offer(f"onnxruntime {found.version} with CUDA", load)


def _onnxruntime(folder: Path, dialect: str) -> Offer:
    from edgekit.runners.cuda_provider import installed_distributions

    # Not imported before it is needed: that takes a second, and a broken library would crash `edgekit doctor`.
    if find_spec("onnxruntime") is None:
        raise missing_extra("onnxruntime", "onnxruntime")

    def load(options: LoadOptions) -> Runner:
        return _cpu_runner_of(dialect)(folder, **options.on_cpu(), shares_cores=options.shares_cores)

    # None if it was built from source.
    installed = installed_distributions() or (("onnxruntime", ""),)
    return Offer(f"{' '.join(installed[-1]).strip()} on the CPU", load)


def _cpu_runner_of(dialect: str) -> Callable[..., Runner]:
    """The runner of a dialect on onnxruntime's CPU provider."""
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


def _mlx(folder: Path, dialect: str) -> Offer:  # noqa: ARG001
    def load(options: LoadOptions) -> Runner:
        from edgekit.runners.mlx import MlxRunner

        return MlxRunner(folder, kv_bits=options.kv_bits, **options.common())

    return Offer("MLX", load)


_TENSORRT = Candidate("tensorrt", "a TensorRT engine", "tensorrt", _tensorrt)
_CPU = Candidate("cpu", "the CPU kernels", "text", _cpu)
_CUDA = Candidate("cuda", "onnxruntime with CUDA", "onnxruntime-gpu", _cuda)
_ONNXRUNTIME = Candidate("onnxruntime", "onnxruntime on the CPU", "onnxruntime", _onnxruntime)
_MLX = Candidate("mlx", "MLX", "mlx", _mlx)

# By dialect, the preferred one first (docs/decisions/0031).
_ONNX: dict[str, tuple[Candidate, ...]] = {
    "onnxruntime": (_CPU, _ONNXRUNTIME),
    "portable": (_TENSORRT, _CUDA, _CPU, _ONNXRUNTIME),
    "native": (_TENSORRT, _CUDA, _CPU, _ONNXRUNTIME),
    "optimum": (_ONNXRUNTIME,),
}
