"""Exports tiny bundles, cuts their graphs into segments, and opens them on the doubles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from edgekit.runners.cuda.driver import Device
from edgekit.runners.tensorrt.graph_file import read_graph_file
from edgekit.runners.tensorrt.load import load_engines
from edgekit.runners.tensorrt.runner import TensorRtRunner
from edgekit.runners.tensorrt.segments import Chain
from edgekit.runners.tensorrt.shapes import BLOCK, BuildLimits, profile_shapes
from tests.runners.cuda.driver_double import DriverDouble
from tests.runners.cuda.host_kernels import host_kernel
from tests.runners.tensorrt.tensorrt_double import ILogger, TensorRtDouble, write_engine

__all__ = ["Opened", "build", "new_driver", "open_double", "window_of"]

Dialect = Literal["portable", "native"]


class Log(ILogger):
    """Keeps errors until they are taken."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def log(self, severity: int, msg: str) -> None:  # noqa: ARG002 - the double logs errors only
        self.messages.append(msg)

    def take(self) -> list[str]:
        messages, self.messages = self.messages, []
        return messages


@dataclass
class Opened:
    """A runner on the doubles."""

    runner: TensorRtRunner
    driver: DriverDouble
    log: Log


def build(
    graph: Path,
    *,
    context: int = 256,
    chunk: int = 64,
    batch: int = 4,
    segments: int = 1,
    exact: bool = False,
) -> list[Path]:
    """Write the "engines" of a graph beside it.

    Args:
        graph: `model.onnx`.
        context: Max tokens of a sequence.
        chunk: Max tokens of a prefill chunk.
        batch: Max sequences that decode in one execution.
        segments: Number of segments.
        exact: See `write_engine`.
    """
    file = read_graph_file(graph)
    native = file.dialect == "native"
    limits = BuildLimits(chunk, context, BLOCK, batch)
    engines = []
    for index, part in enumerate(Chain(file, context if native else None).cut(segments)):
        path = graph.parent / f"segment-{index:02}-{batch}-{chunk}-{segments}-{exact:d}.onnx"
        path.write_bytes(part.model)
        profiles = [profile_shapes(part.inputs, limits, profile) for profile in limits.profiles]
        aliases = {present: past for past, present in part.caches.items() if present is not None}
        engines.append(write_engine(path.with_suffix(".engine"), path, profiles, aliases=aliases, exact=exact))
    return engines


def window_of(graph: Path) -> int | None:
    """The sliding window in a graph's metadata."""
    properties = {prop.key: prop.value for prop in onnx.load(graph, load_external_data=False).metadata_props}
    return int(properties["edgekit.window"]) if "edgekit.window" in properties else None


def new_driver(*, integrated: bool = True, memory: int = 1 << 30) -> DriverDouble:
    """A double of the driver with the kernels that the runner launches."""
    return DriverDouble(
        {"scatter_kv_rows": host_kernel("kv_rows", "scatter_kv_rows")}, integrated=integrated, memory=memory
    )


def open_double(engines: Sequence[Path], driver: DriverDouble | None = None, **options: Any) -> Opened:
    """Open engines on doubles, in a runner with these options."""
    driver = driver or new_driver()
    library, log = TensorRtDouble(driver), Log()
    module: Any = library
    device = Device(driver)
    opened = load_engines(module, log, engines, log.take)
    runner = TensorRtRunner(module, opened, device, errors=log.take, **options)
    return Opened(runner, driver, log)
