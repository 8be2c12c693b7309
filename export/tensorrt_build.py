"""Proves that TensorRT takes a graph: parse it and build an engine with NVIDIA's own library, without a GPU.

The library is TensorRT for RTX, which shares TensorRT's ONNX parser and builds for a named compute capability on
a machine that has none. Its engines run on desktop RTX cards, not on Jetson: there TensorRT builds its own, on the
device. It runs in a child process, because it is native code that writes to the console and may crash.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from edgekit.errors import ExportError, missing_extra
from edgekit.export.child import ask_child
from edgekit.export.writers.onnx.graph import MODEL_FILE

__all__ = ["DIALECTS", "BuildLimits", "BuildReport", "build_engine", "largest_int4_engine"]

DIALECTS = ("portable", "native")
LIBRARY = "tensorrt_rtx_bindings"
_WORKER = "edgekit.export.tensorrt_worker"

# What an engine holds besides weights: a fixed part, and about 75 KiB of kernels for each quantized matrix
# (measured with TensorRT-RTX 1.7 on graphs of 1 to 30 layers, with room to spare).
_ENGINE_BYTES = 4 << 20
_ENGINE_BYTES_PER_MATRIX = 128 << 10


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """The optimization profile: what the engine must be able to run.

    Attributes:
        chunk: Most new tokens in one step (the prefill step).
        context_length: Most tokens in all. `portable`'s cache holds those that are not new, `native`'s all of them.
        typical_past: Tokens in the cache that the builder tunes for.
    """

    chunk: int = 128
    context_length: int = 4096
    typical_past: int = 1024


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What came of a build.

    Attributes:
        library: `tensorrt_rtx`, and its version.
        compute_capability: What the device has, `8.7`.
        built_for: What the library was told, `SM86`: the nearest it knows from below in the same generation.
        graph_bytes: All initializers of the graph.
        int4_bytes: Those stored as INT4.
        engine_bytes: The serialized engine.
        int4_kept: Whether the engine is as large as the graph and its kernels, and no larger: weights that the
            builder had expanded to FP16 would take four times their bytes.
        nodes: Nodes in the graph.
        seconds: Parse and build.
        peak_memory_bytes: Largest resident memory of the building process.
        warnings: What the library complained about.
    """

    library: str
    version: str
    compute_capability: str
    built_for: str
    graph_bytes: int
    int4_bytes: int
    engine_bytes: int
    int4_kept: bool
    nodes: int
    seconds: float
    peak_memory_bytes: int
    warnings: tuple[str, ...]


def build_engine(
    model: Path,
    *,
    compute_capability: str = "8.7",
    limits: BuildLimits | None = None,
    engine: Path | None = None,
    timeout_s: float = 1800,
) -> BuildReport:
    """Parse and build a graph of the `portable` or the `native` dialect.

    Args:
        model: `model.onnx`, or the folder that holds it; external data lies beside it.
        compute_capability: Of the device, `major.minor`.
        limits: The optimization profile.
        engine: Where to keep the engine; None throws it away.
        timeout_s: After that the build is given up.

    Raises:
        EdgekitError: `missing_extra`, if the library is not installed.
        ExportError: The graph is missing or refused (the message names the node), or the builder failed or crashed.
    """
    if find_spec(LIBRARY) is None:
        raise missing_extra("tensorrt_rtx", "tensorrt-rtx")
    path = model / MODEL_FILE if model.is_dir() else model
    graph = _load(path)
    limits = _fit(limits or BuildLimits(), graph)
    graph_bytes, int4_bytes, matrices = _initializers(graph)
    _fix_capacity(graph, limits.context_length)
    request = {
        "model": str(path),
        "engine": None if engine is None else str(engine),
        "compute_capability": compute_capability,
        "inputs": _profile(graph, limits),
    }
    answer = _run_worker(graph, request, timeout_s)
    engine_bytes = int(answer["engine_bytes"])
    return BuildReport(
        library="tensorrt_rtx",
        version=answer["version"],
        compute_capability=compute_capability,
        built_for=answer["built_for"],
        graph_bytes=graph_bytes,
        int4_bytes=int4_bytes,
        engine_bytes=engine_bytes,
        int4_kept=matrices > 0 and engine_bytes <= largest_int4_engine(graph_bytes, matrices),
        nodes=len(graph.graph.node),
        seconds=float(answer["seconds"]),
        peak_memory_bytes=int(answer["peak_memory_bytes"]),
        warnings=tuple(answer["warnings"]),
    )


def largest_int4_engine(graph_bytes: int, matrices: int) -> int:
    """The most an engine can weigh that holds the graph's INT4 weights as INT4.

    Args:
        graph_bytes: All initializers of the graph.
        matrices: INT4 initializers among them.
    """
    return graph_bytes + _ENGINE_BYTES + _ENGINE_BYTES_PER_MATRIX * matrices


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError as error:
        raise ExportError(f"{path} does not exist", hint="name a bundle exported for a TensorRT target") from error
    except Exception as error:  # protobuf's DecodeError has no public home across its versions
        raise ExportError(f"{path} is not an ONNX file: {error}") from error
    for name in {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }:
        if not (path.parent / name).exists():
            raise ExportError(
                f"{path.parent / name} does not exist", hint="the weights lie in a file of their own; copy both"
            )
    dialect = {prop.key: prop.value for prop in model.metadata_props}.get("edgekit.dialect", "portable")
    if dialect not in DIALECTS:
        raise ExportError(
            f"TensorRT does not build the `{dialect}` dialect", hint="export for a TensorRT target, such as orin"
        )
    return model


def _fix_capacity(model: onnx.ModelProto, capacity: int) -> None:
    """Give the cache of a `native` graph its size: TensorRT parses no cache whose length is open."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "capacity":
                dim.dim_value = capacity


def _fit(limits: BuildLimits, model: onnx.ModelProto) -> BuildLimits:
    """No longer than the model's own context."""
    props = {prop.key: prop.value for prop in model.metadata_props}
    context = min(limits.context_length, int(props.get("edgekit.context_length", limits.context_length)))
    chunk = min(limits.chunk, context)
    return BuildLimits(chunk=chunk, context_length=context, typical_past=min(limits.typical_past, context - chunk))


def _initializers(model: onnx.ModelProto) -> tuple[int, int, int]:
    """Bytes of all initializers, bytes of the INT4 ones, and how many INT4 ones there are."""
    total = packed = matrices = 0
    for tensor in model.graph.initializer:
        length = {entry.key: entry.value for entry in tensor.external_data}.get("length")
        size = int(length) if length is not None else len(tensor.raw_data)
        total += size
        if tensor.data_type == TensorProto.INT4:
            packed += size
            matrices += 1
    return total, packed, matrices


def _profile(model: onnx.ModelProto, limits: BuildLimits) -> dict[str, list[list[int]]]:
    """Smallest, typical and largest shape of every input. The typical step decodes one token."""
    past = limits.context_length - limits.chunk
    sizes = {
        "batch": (1, 1, 1),
        "sequence": (1, 1, limits.chunk),
        "rows": (1, 1, limits.chunk),
        "past": (0, limits.typical_past, past),
        "total": (1, limits.typical_past + 1, limits.context_length),
    }
    shapes: dict[str, list[list[int]]] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        unknown = [dim.dim_param for dim in dims if dim.dim_param and dim.dim_param not in sizes]
        if unknown:
            raise ExportError(f"input `{value.name}` has the dimension `{unknown[0]}`, which is not one of ours")
        shapes[value.name] = [
            [sizes[dim.dim_param][i] if dim.dim_param else int(dim.dim_value) for dim in dims] for i in range(3)
        ]
    return shapes


def _run_worker(model: onnx.ModelProto, request: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgekit-build-") as folder:
        graph = Path(folder) / "graph.onnx"
        graph.write_bytes(model.SerializeToString())
        answer = ask_child(
            [sys.executable, "-m", _WORKER],
            {**request, "graph": str(graph)},
            Path(folder),
            who="TensorRT's builder",
            hint="is there enough free memory? building takes about three times the size of the graph",
            timeout_s=timeout_s,
        )
    if "error" in answer:
        raise ExportError(f"TensorRT refuses the graph: {answer['error']}", hint=answer.get("hint"))
    return answer
