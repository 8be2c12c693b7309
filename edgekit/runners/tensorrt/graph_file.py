"""Reads a graph for TensorRT and writes graphs of parts of it; weights stay in the data file.

Nodes and initializers are copied as bytes: only the declarations of inputs and outputs are written anew.

Source of the format: onnx/onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from edgekit.bundle.manifest import ENGINE_DIALECTS
from edgekit.errors import BundleError, RunnerError
from edgekit.runners.cpu.onnx_reader.onnx_proto import (
    ExternalData,
    ModelProto,
    NodeProto,
    Tensor,
    ValueInfo,
    parse_model,
)
from edgekit.runners.cpu.onnx_reader.protobuf import Message

__all__ = ["FLOAT", "INT4", "GraphFile", "read_graph_file", "with_positions"]

FLOAT, INT4 = 1, 22
"""TensorProto.DataType."""

_MAX_FILE = 64 << 20
_ROPE_TABLES = ("cos_cache", "sin_cache")
_EXTERNAL = 1
# Fields of ModelProto that a part of the graph keeps: the opsets and the metadata.
_KEPT = (8, 14)
_BITS = {1: 32, 2: 8, 3: 8, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 16: 16, 21: 4, 22: 4}


@dataclass(frozen=True, slots=True)
class GraphFile:
    """A graph of the `portable` or the `native` dialect.

    Attributes:
        path: The model file.
        model: The parsed graph.
        raw_nodes: The bytes of each node, in the order of `model.nodes`.
        raw_tensors: The bytes of each initializer.
    """

    path: Path
    model: ModelProto
    raw_nodes: Sequence[bytes]
    raw_tensors: Mapping[str, bytes]
    _head: bytes

    @property
    def dialect(self) -> str:
        """The graph's dialect."""
        return self.model.metadata.get("edgekit.dialect", "portable")

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was exported for."""
        text = self.model.metadata.get("edgekit.context_length", "")
        return int(text) if text.isdigit() else None

    def encode(
        self,
        nodes: Iterable[bytes],
        tensors: Collection[str],
        inputs: Iterable[ValueInfo],
        outputs: Iterable[ValueInfo],
    ) -> bytes:
        """Return a `ModelProto` of some nodes; its weights are found beside `path`."""
        graph = b"".join(
            (
                *(_span(1, node) for node in nodes),
                _span(2, b"decoder"),
                *(_span(5, self.raw_tensors[name]) for name in tensors),
                *(_span(11, _value(value)) for value in inputs),
                *(_span(12, _value(value)) for value in outputs),
            )
        )
        return self._head + _span(7, graph)


def read_graph_file(path: Path) -> GraphFile:
    """Read a graph for TensorRT.

    Raises:
        BundleError: The file is missing, damaged or not for TensorRT, or its data file is missing.
        RunnerError: It has parts that this reader does not know.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except FileNotFoundError as error:
        raise BundleError(f"{path} does not exist", hint="name a bundle exported for a TensorRT target") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise BundleError(f"{path} is too large for a graph without weights", hint="was this bundle made by edgekit?")
    try:
        model, outer = parse_model(data), Message(data)
    except BundleError as error:
        raise BundleError(f"{path} is not an ONNX file: {error.message}", hint=error.hint) from error
    if model.unread_parts:
        raise RunnerError(f"{path} has {', '.join(model.unread_parts)}, which this edgekit does not read")
    dialect = model.metadata.get("edgekit.dialect", "portable")
    if dialect not in ENGINE_DIALECTS:
        raise BundleError(
            f"TensorRT does not build the `{dialect}` dialect",
            hint="export for a TensorRT target, such as orin",
            code="bundle_incompatible",
        )
    for name in sorted({one.data.location for one in model.tensors.values() if isinstance(one.data, ExternalData)}):
        # A path could leave the bundle.
        if name != Path(name).name or not (path.parent / name).is_file():
            raise BundleError(
                f"{path.parent / name} does not exist", hint="the weights are in a separate file; copy both"
            )
    graph = Message(outer.contents(7)[0])
    head = _number(1, outer.integer(1)) + b"".join(_span(key, part) for key in _KEPT for part in outer.contents(key))
    raw_tensors = dict(zip(model.tensors, graph.contents(5), strict=True))
    return GraphFile(path, model, graph.contents(1), raw_tensors, head)


def with_positions(graph: GraphFile, positions: int) -> GraphFile:
    """Return a graph whose RoPE tables have only the first rows, as many as positions that it will see.

    Each engine, and each segment, holds the tables of its own.
    """
    tensors, encoded = dict(graph.model.tensors), dict(graph.raw_tensors)
    for name, tensor in graph.model.tensors.items():
        data = tensor.data
        if not name.startswith(_ROPE_TABLES) or len(tensor.shape) != 2 or positions >= tensor.shape[0]:
            continue
        if isinstance(data, ExternalData) and tensor.kind in _BITS:
            shape = (positions, tensor.shape[1])
            data = replace(data, length=prod(shape) * _BITS[tensor.kind] // 8)
            tensors[name] = replace(tensor, shape=shape, data=data)
            encoded[name] = _tensor(tensors[name], data)
    return replace(graph, model=replace(graph.model, tensors=tensors), raw_tensors=encoded)


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of an initializer."""
    if isinstance(tensor.data, ExternalData) and tensor.data.length is not None:
        return tensor.data.length
    return prod(tensor.shape) * _BITS.get(tensor.kind, 32) // 8


def with_inputs(raw: bytes, node: NodeProto, inputs: Sequence[str]) -> bytes:
    """Return a node's bytes with other inputs."""
    message = Message(raw)
    rest = (_span(key, part) for key in range(2, 9) for part in message.contents(key))
    if len(inputs) != len(node.inputs):
        raise ValueError("a node keeps its number of inputs")
    return b"".join((*(_span(1, name.encode()) for name in inputs), *rest))


def _tensor(tensor: Tensor, data: ExternalData) -> bytes:
    """A `TensorProto` whose bytes are in the data file."""
    location = {"location": data.location, "offset": str(data.offset), "length": str(data.length)}
    return b"".join(
        (
            *(_number(1, size) for size in tensor.shape),
            _number(2, tensor.kind),
            _span(8, tensor.name.encode()),
            *(_span(13, _span(1, key.encode()) + _span(2, value.encode())) for key, value in location.items()),
            _number(14, _EXTERNAL),
        )
    )


def _value(value: ValueInfo) -> bytes:
    dims = b"".join(_span(1, _dimension(size)) for size in value.shape or ())
    tensor = _number(1, value.kind) + (_span(2, dims) if value.shape is not None else b"")
    return _span(1, value.name.encode()) + _span(2, _span(1, tensor))


def _dimension(size: int | str) -> bytes:
    if isinstance(size, int):
        return _number(1, size)
    return _span(2, size.encode()) if size else b""


def _span(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
