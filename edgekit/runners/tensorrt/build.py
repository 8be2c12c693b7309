"""Builds the engine of a graph: one segment after another, each in a child process."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import layout_of
from edgekit.errors import RunnerError
from edgekit.runners.tensorrt.build_memory import needed_bytes
from edgekit.runners.tensorrt.build_progress import expected_seconds
from edgekit.runners.tensorrt.child import run_worker
from edgekit.runners.tensorrt.engine_set import EngineSegment, EngineSet, write_engine_set
from edgekit.runners.tensorrt.graph_file import read_graph_file, with_positions
from edgekit.runners.tensorrt.layers import ProfileReport, describe_profiles, read_kernels, read_scratch
from edgekit.runners.tensorrt.library import LibraryName
from edgekit.runners.tensorrt.segments import Chain, Segment
from edgekit.runners.tensorrt.shapes import BLOCK, BuildLimits, profile_shapes
from edgekit.runners.tensorrt.troubles import check_file_size

__all__ = [
    "MODEL_FILE",
    "BuildProgress",
    "BuildReport",
    "InstalledLibrary",
    "SegmentReport",
    "build_engine",
    "installed_library",
    "open_chain",
]

MODEL_FILE = "model.onnx"


@dataclass(frozen=True, slots=True)
class InstalledLibrary:
    """The library that a build would use, as a child process found it.

    Attributes:
        name: `tensorrt` or `tensorrt_rtx`.
        version: Of the library.
        capabilities: The compute capabilities that it builds for, `86 -> SM86`; empty if it builds for its own GPU.
    """

    name: str
    version: str
    capabilities: dict[int, str]

    def nearest(self, capability: str) -> str:
        """Return its name for a device: its own, or the highest below it in the same generation (8.7 runs 8.6).

        Empty if it builds for the GPU of this machine.

        Raises:
            RunnerError: It builds for none of that generation.
        """
        if not self.capabilities:
            return ""
        major, minor = (int(part) for part in capability.split("."))
        usable = [number for number in self.capabilities if number // 10 == major and number % 10 <= minor]
        if not usable:
            known = ", ".join(f"{number / 10:.1f}" for number in sorted(self.capabilities))
            raise RunnerError(
                f"{self.name} {self.version} does not build for compute capability {capability}",
                hint=f"it builds for {known}",
            )
        return self.capabilities[max(usable)]


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build is.

    Attributes:
        segment: Index of the segment that is being built.
        segments: Number of segments.
        share: Finished share of the whole build, from 0 to 1; it never falls. The builder is silent for most of the
            time: then it is estimated from the processor time that its process took (`build_progress`).
    """

    segment: int
    segments: int
    share: float


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """The build of one segment.

    Attributes:
        first_layer: Its first decoder layer; None if it has none.
        last_layer: Its last decoder layer.
        graph_bytes: Size of its weights.
        engine_bytes: Size of its engine.
        seconds: Time to parse and build.
        peak_memory_bytes: Peak resident memory of its build process.
    """

    first_layer: int | None
    last_layer: int | None
    graph_bytes: int
    engine_bytes: int
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class BuildReport:
    """The outcome of a build; of several segments, the sum.

    Attributes:
        library: `tensorrt` or `tensorrt_rtx`.
        version: Of the library.
        compute_capability: Of the device, `8.7`.
        built_for: The library's name of the capability built for, `SM86`: the highest it supports up to the device's,
            in the same generation. Empty if it built for the GPU of this machine.
        graph_bytes: Size of all initializers; those that several segments need count once for each.
        int4_bytes: Size of those stored as INT4.
        engine_bytes: Size of the serialized engines.
        int4_kept: Whether every product of an INT4 matrix reads it as INT4 in every profile; None if the library does
            not list its kernels.
        nodes: Number of nodes in the graph.
        seconds: Time to parse and build.
        peak_memory_bytes: Peak resident memory of a build process.
        scratch_bytes: Memory that a step needs beside inputs and outputs; segments share it. None if the library does
            not say it.
        warnings: The library's warnings.
        decode: The kernels of a step of one token; None if the library does not list them.
        prefill: The kernels of a step of 1 to `chunk` tokens.
        batch: The kernels of a step of one token of each of several sequences; None also if that was not wanted.
        segments: The build of each segment.
    """

    library: str
    version: str
    compute_capability: str
    built_for: str
    graph_bytes: int
    int4_bytes: int
    engine_bytes: int
    int4_kept: bool | None
    nodes: int
    seconds: float
    peak_memory_bytes: int
    scratch_bytes: int | None
    warnings: tuple[str, ...]
    decode: ProfileReport | None
    prefill: ProfileReport | None
    batch: ProfileReport | None
    segments: tuple[SegmentReport, ...]


@lru_cache(maxsize=4)
def installed_library(prefer: LibraryName | None = None) -> InstalledLibrary:
    """Return the library that is installed, without importing it into this process.

    Raises:
        EdgekitError: `missing_extra`, if there is none.
        RunnerError: It crashed when it was imported.
    """
    reply = run_worker({}, prefer=prefer)
    capabilities = {int(number): name for number, name in reply["capabilities"].items()}
    return InstalledLibrary(reply["library"], reply["version"], capabilities)


def open_chain(model: Path, limits: BuildLimits) -> tuple[Chain, BuildLimits]:
    """Read a graph that is to be cut into segments.

    Args:
        model: `model.onnx`, or the folder that holds it; external data lies beside it.
        limits: What the engine must be able to run.

    Returns:
        The graph, and the limits within the model's own context.

    Raises:
        BundleError: The graph is missing, damaged or not for TensorRT.
        RunnerError: It is not a chain of layers.
    """
    graph = read_graph_file(model / MODEL_FILE if model.is_dir() else model)
    limits = limits.clamp(graph.context_length)
    # `portable` holds whole blocks.
    graph = with_positions(graph, -(-limits.context_length // BLOCK) * BLOCK)
    return Chain(graph, limits.context_length if graph.dialect == "native" else None), limits


def build_engine(
    chain: Chain,
    limits: BuildLimits,
    *,
    compute_capability: str,
    folder: Path | None = None,
    segments: int = 1,
    workspace_bytes: int = 0,
    timing_cache: Path | None = None,
    graph_sha256: str = "",
    prefer: LibraryName | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
    check: Callable[[], None] | None = None,
    background: bool = False,
    timeout_s: float = 3600,
) -> BuildReport:
    """Build the engine of a `portable` or `native` graph.

    Args:
        chain: The graph, as `open_chain` returns it.
        limits: What the engine must be able to run, as `open_chain` returns it.
        compute_capability: Of the device, `major.minor`.
        folder: Where to write the engine: an existing empty folder; None discards it. If the build fails, what it wrote
            stays.
        segments: Number of segments of layers.
        workspace_bytes: Limit of the engine's scratch memory; 0 leaves it to the library.
        timing_cache: A file with timings of earlier builds, used and written if the library times kernels.
        graph_sha256: Digest of graph and weights, for the engine's description.
        prefer: The library, if several are installed.
        progress: Called at each step of the builder, and about twice a second while it computes; if it raises, the
            build is cancelled.
        check: Called at least twice a second while a child process runs; if it raises, the build is cancelled.
        background: Leave the processor to others who need it.
        timeout_s: A segment is aborted after this time.

    Raises:
        EdgekitError: `missing_extra`, if the library is not installed.
        ConfigError: The graph cannot be cut into so many segments.
        RunnerError: The graph is refused (the message names the node), the builder failed or crashed, or the engine
            cannot be written.
    """
    library = installed_library(prefer)
    built_for = library.nearest(compute_capability)
    parts = chain.cut(segments)
    if folder is not None:
        # An engine has at least its INT4 weights: better now than after minutes.
        check_file_size(max(part.int4_bytes for part in parts))
    count = len(limits.profiles)
    follow = _Follow(
        [expected_seconds(layers=part.layers, graph_bytes=part.graph_bytes, profiles=count) for part in parts], progress
    )
    replies = []
    for index, part in enumerate(parts):
        request = {
            "graph": base64.b64encode(part.model).decode("ascii"),
            "model": str(chain.path),
            "engine": None if folder is None else str(folder / _file(index)),
            "capability": built_for,
            "workspace_bytes": workspace_bytes,
            "timing_cache": None if timing_cache is None else str(timing_cache),
            "background": background,
            "profiles": [profile_shapes(part.inputs, limits, profile) for profile in limits.profiles],
        }
        follow.begin(index)
        needed = needed_bytes(part, library.name, batch=limits.batch)
        reply = run_worker(
            request,
            prefer=prefer,
            progress=follow,
            check=check,
            needed_bytes=needed,
            expected_s=follow.expected_s,
            timeout_s=timeout_s,
        )
        follow.end(float(reply["cpu_seconds"]))
        replies.append(reply)
    if folder is not None:
        engine = EngineSet(
            library=library.name,
            version=library.version,
            compute_capability=compute_capability,
            built_for=built_for,
            dialect=chain.dialect,
            layout=layout_of(chain.dialect),
            graph_sha256=graph_sha256,
            context_length=limits.context_length,
            workspace_bytes=workspace_bytes,
            profiles=limits.profiles,
            segments=tuple(_engine(index, *pair) for index, pair in enumerate(zip(parts, replies, strict=True))),
        )
        write_engine_set(folder, engine)
    return _report(library, compute_capability, built_for, parts, replies)


class _Follow:
    """Turns the progress of one segment into that of the whole build.

    Args:
        expected: Expected processor time of each segment, in seconds.
        progress: Called with the progress.
    """

    def __init__(self, expected: Sequence[float], progress: Callable[[BuildProgress], None] | None) -> None:
        self._progress = progress
        self._expected = expected
        self._starts = [sum(expected[:index]) / sum(expected) for index in range(len(expected))] + [1.0]
        self._index, self._share, self._took_s = 0, 0.0, 0.0

    @property
    def expected_s(self) -> float:
        """Expected processor time of the segment, by what those before it took."""
        known = sum(self._expected[: self._index])
        return self._expected[self._index] * (self._took_s / known if known and self._took_s else 1.0)

    def begin(self, index: int) -> None:
        """Begin a segment."""
        self._index = index
        self(0.0)

    def end(self, cpu_s: float) -> None:
        """End a segment that took so much processor time."""
        self._took_s += cpu_s
        self(1.0)

    def __call__(self, share: float) -> None:
        """Report the finished share of the segment."""
        start, stop = self._starts[self._index : self._index + 2]
        self._share = max(self._share, start + (stop - start) * share)
        if self._progress is not None:
            self._progress(BuildProgress(self._index, len(self._expected), self._share))


def _file(index: int) -> str:
    return f"segment-{index:02}.engine"


def _engine(index: int, part: Segment, reply: Mapping[str, Any]) -> EngineSegment:
    return EngineSegment(
        file=_file(index),
        size=int(reply["size"]),
        sha256=str(reply["sha256"]),
        first_layer=part.first_layer,
        last_layer=part.last_layer,
        boundary=part.boundary,
        inputs=tuple(value.name for value in part.inputs),
        outputs=tuple(value.name for value in part.outputs),
    )


def _report(
    library: InstalledLibrary,
    compute_capability: str,
    built_for: str,
    parts: Sequence[Segment],
    replies: Sequence[Mapping[str, Any]],
) -> BuildReport:
    segments = tuple(
        SegmentReport(
            first_layer=part.first_layer,
            last_layer=part.last_layer,
            graph_bytes=part.graph_bytes,
            engine_bytes=int(reply["size"]),
            seconds=float(reply["seconds"]),
            peak_memory_bytes=int(reply["peak_memory_bytes"]),
        )
        for part, reply in zip(parts, replies, strict=True)
    )
    kernels = [_profiles(part, reply["reports"]) for part, reply in zip(parts, replies, strict=True)]
    decode, prefill, batch = (_sum(profiles) for profiles in zip(*kernels, strict=True))
    listed = [profile for profile in (decode, prefill, batch) if profile is not None]
    int4_bytes = sum(part.int4_bytes for part in parts)
    return BuildReport(
        library=library.name,
        version=library.version,
        compute_capability=compute_capability,
        built_for=built_for,
        graph_bytes=sum(segment.graph_bytes for segment in segments),
        int4_bytes=int4_bytes,
        engine_bytes=sum(segment.engine_bytes for segment in segments),
        int4_kept=int4_bytes > 0 and not any(profile.expanded for profile in listed) if listed else None,
        nodes=sum(part.nodes for part in parts),
        seconds=sum(segment.seconds for segment in segments),
        peak_memory_bytes=max(segment.peak_memory_bytes for segment in segments),
        scratch_bytes=read_scratch(message for reply in replies for message in reply["reports"]),
        warnings=tuple(dict.fromkeys(text for reply in replies for text in reply["warnings"])),
        decode=decode,
        prefill=prefill,
        batch=batch,
        segments=segments,
    )


def _profiles(part: Segment, reports: Sequence[str]) -> list[ProfileReport | None]:
    """The kernels of the three profiles of a segment, if it has them and the library lists them."""
    found = describe_profiles(read_kernels(reports), part.products, part.caches)
    return [*found, None] if len(found) == 2 else [*found] if len(found) == 3 else [None] * 3


def _sum(reports: Sequence[ProfileReport | None]) -> ProfileReport | None:
    profiles = [report for report in reports if report is not None]
    if len(profiles) < len(reports):
        return None

    def joined(field: str) -> tuple[str, ...]:
        return tuple(name for profile in profiles for name in getattr(profile, field))

    return ProfileReport(
        kernels=sum(profile.kernels for profile in profiles),
        int4=sum(profile.int4 for profile in profiles),
        expanded=joined("expanded"),
        cache_copies=joined("cache_copies"),
        cache_moves=joined("cache_moves"),
    )
