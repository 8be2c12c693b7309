"""Gives a bundle its engine: from the store, from another device, or built now."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import ENGINE_DIALECTS
from edgekit.errors import ConfigError, IncompatibleBundleError, RunnerError, option
from edgekit.machine import available_bytes
from edgekit.runners.tensorrt.build import (
    BuildProgress,
    BuildReport,
    InstalledLibrary,
    build_engine,
    installed_library,
    open_chain,
)
from edgekit.runners.tensorrt.build_memory import choose_segments, needed_bytes
from edgekit.runners.tensorrt.engine_set import read_engine_set
from edgekit.runners.tensorrt.fetch import fetch_engine, find_offer
from edgekit.runners.tensorrt.library import LibraryName
from edgekit.runners.tensorrt.segments import Chain
from edgekit.runners.tensorrt.shapes import BuildLimits
from edgekit.runners.tensorrt.store import EngineStore, StoredEngine, Wanted, graph_digest
from edgekit.runners.tensorrt.troubles import write_failed

__all__ = ["BuildPlan", "PreparedEngine", "check_artifact", "check_output", "plan_build", "prepare_engine"]


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What is to be built.

    Attributes:
        bundle: The bundle.
        library: The library that builds.
        chain: Its graph.
        limits: What the engine must be able to run, within the model's context.
        wanted: The engine.
        graph_bytes: Weights of the graph; the engine is at least as large.
        prefer: As for `plan_build`.
    """

    bundle: Bundle
    library: InstalledLibrary
    chain: Chain
    limits: BuildLimits
    wanted: Wanted
    graph_bytes: int
    prefer: LibraryName | None = None

    def choose_segments(self, available: int | None) -> int:
        """Return the smallest number of segments whose builds fit into so many bytes.

        Raises:
            RunnerError: `build_memory`: even single layers do not fit.
        """
        return choose_segments(self.chain, self.library.name, available, batch=self.limits.batch)

    def needed_bytes(self, segments: int) -> int:
        """Return the memory that a build of so many segments takes."""
        parts = self.chain.cut(segments)
        return max(needed_bytes(part, self.library.name, batch=self.limits.batch) for part in parts)


@dataclass(frozen=True, slots=True)
class PreparedEngine:
    """An engine that can be loaded.

    Attributes:
        stored: The engine.
        report: Its build; None if it was not built now.
        fetched: It was copied from another device now.
    """

    stored: StoredEngine
    report: BuildReport | None
    fetched: bool = False


def check_artifact(bundle: Bundle) -> None:
    """Refuse a bundle that is not for TensorRT.

    Raises:
        IncompatibleBundleError: Its graph is in another dialect, or it has none.
    """
    artifact = bundle.manifest.artifact
    if artifact.kind != "onnx" or artifact.dialect not in ENGINE_DIALECTS:
        raise IncompatibleBundleError(
            f"{bundle.path} is not for TensorRT: its artifact is {f'{artifact.kind} {artifact.dialect}'.strip()}",
            hint="export it for a device with TensorRT: edgekit export MODEL --target orin",
        )


def plan_build(
    bundle: Bundle,
    *,
    compute_capability: str,
    limits: BuildLimits | None = None,
    segments: int | None = None,
    workspace_bytes: int = 0,
    any_shapes: bool = False,
    prefer: LibraryName | None = None,
) -> BuildPlan:
    """Determine the engine that a bundle needs.

    Args:
        bundle: The bundle; its files are already verified (`edgekit.bundle.check`).
        compute_capability: Of the device, `major.minor`.
        limits: What the engine must be able to run.
        segments: Number of segments; None leaves it to the memory that is available.
        workspace_bytes: Limit of the engine's scratch memory; 0 leaves it to the library.
        any_shapes: An engine that another device built for other limits is wanted too.
        prefer: The library, if several are installed.

    Raises:
        EdgekitError: `missing_extra`, if no library is installed.
        BundleError: The graph is missing or damaged.
        IncompatibleBundleError: The bundle is not for TensorRT.
        ConfigError: The graph cannot be cut into so many segments.
        RunnerError: The library does not build for this device.
    """
    check_artifact(bundle)
    artifact = bundle.manifest.artifact
    library = installed_library(prefer)
    library.nearest(compute_capability)
    chain, limits = open_chain(bundle.path, limits or BuildLimits())
    whole = chain.cut(segments or 1)
    wanted = Wanted(
        graph_sha256=graph_digest(bundle),
        dialect=artifact.dialect,
        layout=artifact.layout,
        library=library.name,
        version=library.version,
        compute_capability=compute_capability,
        context_length=None if any_shapes else limits.context_length,
        workspace_bytes=workspace_bytes,
        profiles=None if any_shapes else limits.profiles,
        segments=segments,
    )
    return BuildPlan(bundle, library, chain, limits, wanted, sum(part.graph_bytes for part in whole), prefer)


def prepare_engine(
    plan: BuildPlan,
    *,
    store: EngineStore | None = None,
    output: Path | None = None,
    source: str | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
    waiting: Callable[[], None] | None = None,
    check: Callable[[], None] | None = None,
    memory_bytes: int | None = None,
) -> PreparedEngine:
    """Return the engine of a bundle, from the store if it has it.

    Args:
        plan: The engine.
        store: Where engines are kept; default: `EngineStore()`.
        output: Write the engine into this new folder instead, for another device to fetch.
        source: Take the engine of another device of the same kind instead of building one: a folder, or `user@host`
            (`find_offer`). Nothing is copied if the store has the very same.
        progress: As for `build_engine`.
        waiting: As for `EngineStore.obtain`.
        check: As for `build_engine`.
        memory_bytes: Memory that a build may take beside a model that answers, to which it also leaves the processor;
            None if it may take what is available.

    Raises:
        ConfigError: As `check_output`.
        RunnerError: The build failed, memory or disk do not suffice, or `source` does not have the engine needed.
    """
    reports: list[BuildReport] = []
    fetched = False
    offer = None if source is None else find_offer(source, plan.wanted)

    def copied(done: int, total: int) -> None:
        if progress is not None:
            progress(BuildProgress(0, 1, done / max(1, total)))

    def make(folder: Path) -> None:
        nonlocal fetched
        if offer is None:
            reports.append(_build(plan, folder, timings, progress, check=check, memory_bytes=memory_bytes))
            return
        fetch_engine(offer, folder, copied)
        fetched = True

    if output is not None:
        timings = None
        check_output(plan.bundle, output)
        stored = _write_into(output.absolute(), make)
    else:
        store = store or EngineStore()
        timings = store.timings
        wanted = plan.wanted if offer is None else plan.wanted.exactly(offer.engine)
        needed = plan.graph_bytes if offer is None else offer.engine.size
        stored = store.obtain(plan.bundle.path, wanted, make, needed_bytes=needed, waiting=waiting)
    return PreparedEngine(stored, reports[0] if reports else None, fetched)


def _build(
    plan: BuildPlan,
    folder: Path,
    timings: Path | None,
    progress: Callable[[BuildProgress], None] | None,
    *,
    check: Callable[[], None] | None,
    memory_bytes: int | None,
) -> BuildReport:
    count = plan.wanted.segments
    if count is None:
        count = plan.choose_segments(available_bytes() if memory_bytes is None else memory_bytes)
    return build_engine(
        plan.chain,
        plan.limits,
        compute_capability=plan.wanted.compute_capability,
        folder=folder,
        segments=count,
        workspace_bytes=plan.wanted.workspace_bytes,
        timing_cache=timings,
        graph_sha256=plan.wanted.graph_sha256,
        prefer=plan.prefer,
        progress=progress,
        check=check,
        background=memory_bytes is not None,
    )


def check_output(bundle: Bundle, output: Path) -> None:
    """Check that a folder can be made for an engine.

    Raises:
        ConfigError: It already exists and is not empty, or it is inside the bundle.
    """
    output = output.absolute()
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise ConfigError(f"{output} already exists", hint=f"choose another {option('output')}")
    if output.resolve().is_relative_to(bundle.path.resolve()):
        raise ConfigError(
            f"{output} is inside the bundle, which would no longer be what its manifest says",
            hint=f"choose an {option('output')} beside it, such as {bundle.path.resolve()}-engine",
        )


def _write_into(output: Path, make: Callable[[Path], None]) -> StoredEngine:
    """Make an engine beside a new folder, and rename it when it is complete."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        raise RunnerError(f"cannot write to {output.parent}: {error.strerror}") from error
    try:
        make(folder)
        engine = read_engine_set(folder)
        folder.chmod(0o755)
        folder.rename(output)
    except OSError as error:
        raise write_failed(f"writing {output} failed", error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return StoredEngine(output, engine)
