"""A double of `build_engine` that writes engines of the TensorRT double, as fast or as slowly as a test wants."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from edgekit.bundle.manifest import layout_of
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.progress import silent
from edgekit.generation import first_build
from edgekit.runners.cuda.driver import Device
from edgekit.runners.tensorrt import open as opening
from edgekit.runners.tensorrt import prepare
from edgekit.runners.tensorrt.build import BuildProgress, BuildReport, InstalledLibrary
from edgekit.runners.tensorrt.engine_set import EngineSegment, EngineSet, write_engine_set
from edgekit.runners.tensorrt.library import NvidiaLibrary
from edgekit.runners.tensorrt.segments import Chain
from edgekit.runners.tensorrt.shapes import BuildLimits
from edgekit.target import load_target
from tests.runners.cuda.driver_double import DriverDouble
from tests.runners.tensorrt.engines import build, new_driver
from tests.runners.tensorrt.tensorrt_double import TensorRtDouble
from tests.variants import variant

__all__ = ["CAPABILITY", "VERSION", "BuilderDouble", "export_two", "machine_with_tensorrt"]

VERSION = "10.3.0"
CAPABILITY = "8.7"


@dataclass
class BuilderDouble:
    """The builder of a machine with a GPU.

    Attributes:
        work: A folder of its own.
        graph_of: Builds the graph of this bundle instead, so that the engine computes something else.
        fails: What a build ends with.
        go_on: A build waits for it.
        builds: The limits of every build begun.
        share: Of a build that waits.
    """

    work: Path
    graph_of: Path | None = None
    fails: Exception | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    builds: list[BuildLimits] = field(default_factory=list)
    share: float = 0.37

    def __call__(
        self,
        chain: Chain,
        limits: BuildLimits,
        *,
        folder: Path,
        compute_capability: str,
        graph_sha256: str,
        progress: Callable[[BuildProgress], None],
        check: Callable[[], None],
        **_: Any,
    ) -> BuildReport:
        self.builds.append(limits)
        while not self.go_on.is_set():
            progress(BuildProgress(0, 1, self.share))
            check()
            time.sleep(0.01)
        if self.fails is not None:
            raise self.fails
        # The engine refers to the graph, which the double executes.
        work = Path(shutil.copytree(self.graph_of or chain.path.parent, Path(mkdtemp(dir=self.work)) / "graph"))
        (made,) = build(work / "model.onnx", context=limits.context_length, chunk=limits.chunk, batch=limits.batch)
        data, name = made.read_bytes(), "segment-00.engine"
        (folder / name).write_bytes(data)
        write_engine_set(
            folder,
            EngineSet(
                library="tensorrt",
                version=VERSION,
                compute_capability=compute_capability,
                built_for="",
                dialect=chain.dialect,
                layout=layout_of(chain.dialect),
                graph_sha256=graph_sha256,
                context_length=limits.context_length,
                workspace_bytes=0,
                profiles=limits.profiles,
                segments=(
                    EngineSegment(name, len(data), sha256(data).hexdigest(), 0, 2, None, ("input_ids",), ("logits",)),
                ),
            ),
        )
        return BuildReport(
            library="tensorrt",
            version=VERSION,
            compute_capability=compute_capability,
            built_for="",
            graph_bytes=0,
            int4_bytes=0,
            engine_bytes=0,
            int4_kept=None,
            nodes=0,
            seconds=1.0,
            peak_memory_bytes=0,
            scratch_bytes=None,
            warnings=(),
            decode=None,
            prefill=None,
            batch=None,
            segments=(),
        )


def export_two(folder: Path) -> Path:
    """Export two models of one shape for an Orin into `bundle` and `other` of a folder, and return the folder."""
    for name, seed in (("bundle", 0), ("other", 1)):
        source = variant("qwen2", folder / f"{name}-model", seed=seed)
        export_bundle(str(source), load_target("orin"), folder / name, ExportOptions(), silent)
    return folder


@contextmanager
def machine_with_tensorrt(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[tuple[BuilderDouble, DriverDouble]]:
    """Have this process find the doubles of the CUDA driver, TensorRT and its builder.

    Args:
        cache: edgekit's cache folder meanwhile, and the state's.
        patch: The test's own: what it replaces again is restored in order.
    """
    work = cache / "builder"
    work.mkdir()
    driver, builder = new_driver(), BuilderDouble(work)
    library = NvidiaLibrary(TensorRtDouble(driver), "tensorrt", VERSION)
    installed = InstalledLibrary("tensorrt", VERSION, {})
    for module in (opening, prepare):
        patch.setattr(module, "installed_library", lambda _=None: installed)
    patch.setattr(opening, "find_library", lambda _: library)
    patch.setattr(opening, "open_device", lambda: Device(driver))
    # Both import it by name.
    for module in (opening, first_build):
        patch.setattr(module, "check_driver", lambda: None)
    patch.setattr(prepare, "build_engine", builder)
    patch.setenv("EDGEKIT_CACHE", str(cache / "cache"))
    patch.setenv("EDGEKIT_STATE", str(cache / "state"))
    yield builder, driver
    builder.go_on.set()
