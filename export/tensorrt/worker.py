"""The child process of `build`: the only code that uses NVIDIA's library.

    python -m edgekit.export.tensorrt.worker REQUEST.json REPLY.json

It parses the requested graph, whose weights lie beside the requested model, builds it for the requested shapes, and
reports the outcome.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import tensorrt_rtx_bindings as trt

from edgekit.export.tensorrt.layers import LAYERS

__all__ = ["main"]

_MAX_MESSAGES = 20


class _Log(trt.ILogger):  # type: ignore[misc]  # the library ships no types
    """Collects errors and warnings, and prints nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""

    def log(self, severity: Any, message: str) -> None:
        """Receive one message of the library."""
        if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
            self.errors.append(message)
        # Logged for every int64 input; ours are int64 on purpose.
        elif severity == trt.ILogger.WARNING and "Int64 binding" not in message:
            self.warnings.append(message)
        elif message.startswith(LAYERS):
            self.layers = message


class _Sink(trt.IStreamWriter):  # type: ignore[misc]  # as above
    """Counts the engine's bytes as they are written, never keeping them in memory, and saves them to a file if any."""

    def __init__(self, file: BinaryIO | None) -> None:
        super().__init__()
        self.size = 0
        self._file = file

    def write(self, data: bytes) -> int:
        """Receive a chunk of the engine."""
        self.size += len(data)
        if self._file is not None:
            self._file.write(data)
        return len(data)


def main(request_file: str, reply_file: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    Path(reply_file).write_text(json.dumps(_build(request)), encoding="utf-8")


def _build(request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(Path(request["graph"]).read_bytes(), request["model"]):
        return {"error": _parser_errors(parser)}
    _allow_decomposed_attention(network)
    config = builder.create_builder_config()
    name = _nearest(request["compute_capability"])
    if name is None:
        known = ", ".join(f"{number / 10:.1f}" for number in sorted(_capabilities()))
        return {
            "error": f"compute capability {request['compute_capability']} is older than this library builds for",
            "hint": f"it builds for {known}",
        }
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    # Otherwise some builds wait for one another hundreds of times in a step.
    config.max_aux_streams = 0
    # Lists the kernels in the log.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for shapes in request["profiles"]:
        profile = builder.create_optimization_profile()
        for tensor, (min_shape, opt_shape, max_shape) in shapes.items():
            profile.set_shape(tensor, min_shape, opt_shape, max_shape)
        config.add_optimization_profile(profile)
    size = _serialize(builder, network, config, request["engine"])
    if size is None:
        return {"error": "; ".join(log.errors[:3]) or "the builder gave no reason"}
    return {
        "version": str(trt.__version__),
        "built_for": name,
        "engine_bytes": size,
        "seconds": time.perf_counter() - start,
        # Linux counts in KiB.
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "warnings": log.warnings[:_MAX_MESSAGES],
        "layers": log.layers,
    }


def _allow_decomposed_attention(network: Any) -> None:
    """Allow several kernels for one attention where no fused one exists; the parser disallows it."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            # The library returns the base class; its documentation narrows it this way.
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _serialize(builder: Any, network: Any, config: Any, engine: str | None) -> int | None:
    if engine is None:
        sink = _Sink(None)
        return sink.size if builder.build_serialized_network_to_stream(network, config, sink) else None
    with Path(engine).open("wb") as file:
        sink = _Sink(file)
        return sink.size if builder.build_serialized_network_to_stream(network, config, sink) else None


def _parser_errors(parser: Any) -> str:
    errors = [parser.get_error(i) for i in range(min(parser.num_errors, 3))]
    return "; ".join(
        f"node `{error.node_name()}` ({error.node_operator()}): {error.desc()}" if error.node_name() else error.desc()
        for error in errors
    )


def _capabilities() -> dict[int, str]:
    """The compute capabilities that the library supports, `86 -> SM86`."""
    members = trt.ComputeCapability.__members__
    return {int(name[2:]): name for name in members if name.startswith("SM")}


def _nearest(capability: str) -> str | None:
    """The library's name for a device: its own, or the highest below it in the same generation (8.7 runs 8.6)."""
    major, minor = (int(part) for part in capability.split("."))
    known = _capabilities()
    usable = [number for number in known if number // 10 == major and number % 10 <= minor]
    return known[max(usable)] if usable else None


if __name__ == "__main__":
    main(*sys.argv[1:])
