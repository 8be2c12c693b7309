"""Checks that TensorRT accepts a graph: parses it and builds an engine with NVIDIA's library, without a GPU.

The library is TensorRT for RTX, which shares TensorRT's ONNX parser and builds for a given compute capability on a
machine without a GPU. Its engines run on desktop RTX cards, not on Jetson, where TensorRT builds its own on the device.
It runs in a child process, because it is native code that writes to the console and may crash.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from edgekit.errors import ExportError, missing_extra
from edgekit.export.subprocess_json import ask_child
from edgekit.export.tensorrt.layers import ProfileReport, describe_profiles, read_kernels
from edgekit.export.writers.onnx.graph import MODEL_FILE
from edgekit.export.writers.onnx.portable import BLOCK

__all__ = ["DIALECTS", "BuildLimits", "BuildReport", "build_engine"]

DIALECTS = ("portable", "native")
LIBRARY = "tensorrt_rtx_bindings"
_WORKER = "edgekit.export.tensorrt.worker"


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """The optimization profiles: what the engine must be able to run. One is for one token, one for a chunk.

    Attributes:
        chunk: Max new tokens per step (the prefill chunk).
        context_length: Max tokens in total. `portable`'s cache holds those that are not new, in whole blocks;
            `native`'s all of them.
        typical_past: Tokens in the cache that the builder tunes for.
    """

    chunk: int = 128
    context_length: int = 4096
    typical_past: int = 1024


@dataclass(frozen=True, slots=True)
class BuildReport:
    """The outcome of a build.

    Attributes:
        library: `tensorrt_rtx`.
        version: Of the library.
        compute_capability: Of the device, `8.7`.
        built_for: The library's name of the capability built for, `SM86`: the highest it supports up to the device's,
            in the same generation.
        graph_bytes: Size of all initializers of the graph.
        int4_bytes: Size of those stored as INT4.
        engine_bytes: Size of the serialized engine.
        int4_kept: Whether every product of an INT4 matrix reads it as INT4 in both profiles.
        nodes: Number of nodes in the graph.
        seconds: Time to parse and build.
        peak_memory_bytes: Peak resident memory of the build process.
        warnings: The library's warnings.
        decode: The kernels of a step of one token.
        prefill: The kernels of a step of 1 to `chunk` tokens.
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
    decode: ProfileReport
    prefill: ProfileReport


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
        engine: Where to save the engine; None discards it.
        timeout_s: The build is aborted after this time.

    Raises:
        EdgekitError: `missing_extra`, if the library is not installed.
        ExportError: The graph is missing or refused (the message names the node), or the builder failed or crashed.
    """
    if find_spec(LIBRARY) is None:
        raise missing_extra("tensorrt_rtx", "tensorrt-rtx")
    path = model / MODEL_FILE if model.is_dir() else model
    graph = _load(path)
    limits = _clamp(limits or BuildLimits(), graph)
    graph_bytes, int4_bytes = _initializers(graph)
    _fix_capacity(graph, limits.context_length)
    request = {
        "model": str(path),
        "engine": None if engine is None else str(engine),
        "compute_capability": compute_capability,
        "profiles": [_shapes(graph, replace(limits, chunk=1)), _shapes(graph, limits)],
    }
    reply = _run_worker(graph, request, timeout_s)
    profiles = describe_profiles(read_kernels([reply["layers"]]), _int4_products(graph), _caches(graph))
    if len(profiles) != 2:
        raise ExportError(f"the kernels of the engine are unknown: {LIBRARY} {reply['version']} does not list them")
    decode, prefill = profiles
    return BuildReport(
        library="tensorrt_rtx",
        version=reply["version"],
        compute_capability=compute_capability,
        built_for=reply["built_for"],
        graph_bytes=graph_bytes,
        int4_bytes=int4_bytes,
        engine_bytes=int(reply["engine_bytes"]),
        int4_kept=int4_bytes > 0 and not (decode.expanded or prefill.expanded),
        nodes=len(graph.graph.node),
        seconds=float(reply["seconds"]),
        peak_memory_bytes=int(reply["peak_memory_bytes"]),
        warnings=tuple(reply["warnings"]),
        decode=decode,
        prefill=prefill,
    )


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
                f"{path.parent / name} does not exist", hint="the weights are in a separate file; copy both"
            )
    dialect = {prop.key: prop.value for prop in model.metadata_props}.get("edgekit.dialect", "portable")
    if dialect not in DIALECTS:
        raise ExportError(
            f"TensorRT does not build the `{dialect}` dialect", hint="export for a TensorRT target, such as orin"
        )
    return model


def _fix_capacity(model: onnx.ModelProto, capacity: int) -> None:
    """Set the cache length of a `native` graph: TensorRT does not parse a cache of unknown length."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "capacity":
                dim.dim_value = capacity


def _clamp(limits: BuildLimits, model: onnx.ModelProto) -> BuildLimits:
    """Limit the profile to the model's own context."""
    props = {prop.key: prop.value for prop in model.metadata_props}
    context = min(limits.context_length, int(props.get("edgekit.context_length", limits.context_length)))
    chunk = min(limits.chunk, context)
    return BuildLimits(chunk=chunk, context_length=context, typical_past=min(limits.typical_past, context - chunk))


def _initializers(model: onnx.ModelProto) -> tuple[int, int]:
    """Bytes of all initializers, and of the INT4 ones."""
    total = packed = 0
    for tensor in model.graph.initializer:
        length = {entry.key: entry.value for entry in tensor.external_data}.get("length")
        size = int(length) if length is not None else len(tensor.raw_data)
        total += size
        if tensor.data_type == TensorProto.INT4:
            packed += size
    return total, packed


def _int4_products(model: onnx.ModelProto) -> list[str]:
    """The matrix products of INT4 weights: nodes."""
    packed = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT4}
    floats = {
        node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in packed
    }
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and floats & {*node.input}]


def _caches(model: onnx.ModelProto) -> dict[str, str | None]:
    """By input of the KV cache, the output that is the same cache, if any."""
    shapes = {
        value.name: value.type.tensor_type.shape.SerializeToString(deterministic=True)
        for value in (*model.graph.input, *model.graph.output)
    }
    outputs = {name: name.replace("past_key_values", "present") for name in shapes if name.startswith("past_")}
    return {name: output if shapes[output] == shapes[name] else None for name, output in outputs.items()}


def _shapes(model: onnx.ModelProto, limits: BuildLimits) -> dict[str, list[list[int]]]:
    """Min, opt and max shape of every input in one profile, which is tuned for its longest step."""
    past = (limits.context_length - limits.chunk) // BLOCK * BLOCK
    typical = limits.typical_past // BLOCK * BLOCK
    sizes = {
        "batch": (1, 1, 1),
        "sequence": (1, limits.chunk, limits.chunk),
        "rows": (1, 1, limits.chunk),
        "blocks": (0, typical // BLOCK, past // BLOCK),
        "total": (1, typical + limits.chunk, past + limits.chunk),
    }
    shapes: dict[str, list[list[int]]] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        unknown = [dim.dim_param for dim in dims if dim.dim_param and dim.dim_param not in sizes]
        if unknown:
            raise ExportError(f"input `{value.name}` has the unknown dimension `{unknown[0]}`")
        shapes[value.name] = [
            [sizes[dim.dim_param][i] if dim.dim_param else int(dim.dim_value) for dim in dims] for i in range(3)
        ]
    return shapes


def _run_worker(model: onnx.ModelProto, request: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgekit-build-") as folder:
        graph = Path(folder) / "graph.onnx"
        graph.write_bytes(model.SerializeToString())
        reply = ask_child(
            [sys.executable, "-m", _WORKER],
            {**request, "graph": str(graph)},
            Path(folder),
            program="TensorRT's builder",
            hint="is there enough free memory? building takes about three times the size of the graph",
            timeout_s=timeout_s,
        )
    if "error" in reply:
        raise ExportError(f"TensorRT refuses the graph: {reply['error']}", hint=reply.get("hint"))
    return reply
