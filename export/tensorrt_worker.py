"""The child process of `tensorrt_build`: the only code that talks to NVIDIA's library.

    python -m edgekit.export.tensorrt_worker REQUEST.json REPLY.json

It knows no dialect: it parses the graph it is given, whose weights lie beside the model it is given, with the shapes it
is given, and says how that went.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import tensorrt_rtx_bindings as trt

__all__ = ["main"]

_MOST_MESSAGES = 20


class _Log(trt.ILogger):  # type: ignore[misc]  # the library ships no types
    """Keeps errors and warnings; the console stays silent."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Receive one message of the library."""
        if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
            self.errors.append(message)
        # Said of every int64 input; ours are meant to be.
        elif severity == trt.ILogger.WARNING and "Int64 binding" not in message:
            self.warnings.append(message)


class _Sink(trt.IStreamWriter):  # type: ignore[misc]  # as above
    """Counts the engine's bytes as they come, so that it is never held in memory, and keeps them if asked to."""

    def __init__(self, file: BinaryIO | None) -> None:
        super().__init__()
        self.size = 0
        self._file = file

    def write(self, data: bytes) -> int:
        """Take a part of the engine."""
        self.size += len(data)
        if self._file is not None:
            self._file.write(data)
        return len(data)


def main(request_file: str, reply_file: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    Path(reply_file).write_text(json.dumps(_build(request)), encoding="utf-8")


def _build(request: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(Path(request["graph"]).read_bytes(), request["model"]):
        return {"error": _parser_errors(parser)}
    _let_attention_be_decomposed(network)
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
    profile = builder.create_optimization_profile()
    for tensor, (smallest, typical, largest) in request["inputs"].items():
        profile.set_shape(tensor, smallest, typical, largest)
    config.add_optimization_profile(profile)
    size = _serialize(builder, network, config, request["engine"])
    if size is None:
        return {"error": "; ".join(log.errors[:3]) or "the builder gave no reason"}
    return {
        "version": str(trt.__version__),
        "built_for": name,
        "engine_bytes": size,
        "seconds": time.perf_counter() - began,
        # Linux counts in KiB.
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "warnings": log.warnings[:_MOST_MESSAGES],
    }


def _let_attention_be_decomposed(network: Any) -> None:
    """Allow several kernels for one attention where no fused one exists; the parser forbids it."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            # The library hands out the base class; this is how its documentation has one narrowed.
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
    """The compute capabilities the library can be told, `86 -> SM86`."""
    members = trt.ComputeCapability.__members__
    return {int(name[2:]): name for name in members if name.startswith("SM")}


def _nearest(capability: str) -> str | None:
    """The library's name for a device: its own, or the highest below it of the same generation (8.7 runs 8.6)."""
    major, minor = (int(part) for part in capability.split("."))
    known = _capabilities()
    usable = [number for number in known if number // 10 == major and number % 10 <= minor]
    return known[max(usable)] if usable else None


if __name__ == "__main__":
    main(*sys.argv[1:])
