"""Encodes small ONNX graphs, for operations on a device: a device needs no `onnx` package.

Field numbers: onnx/onnx.proto. Protocol Buffers: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["FLOAT", "FLOAT16", "INT4", "INT64", "Node", "Tensor", "Value", "encode_model"]

FLOAT, INT64, FLOAT16, INT4 = 1, 7, 10, 22
"""Element types: TensorProto.DataType."""


@dataclass(frozen=True, slots=True)
class Node:
    """An operator of the default domain, with integers as its attributes."""

    op_type: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of the graph; a string is a dimension's name."""

    name: str
    element_type: int
    shape: Sequence[int | str]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A constant; `data` are its elements, little-endian."""

    name: str
    element_type: int
    shape: Sequence[int]
    data: bytes


def encode_model(
    nodes: Sequence[Node],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    tensors: Sequence[Tensor] = (),
    *,
    opset: int,
    ir_version: int,
) -> bytes:
    """Return a serialized ModelProto."""
    graph = b"".join(
        (
            *(_field(1, _node(node)) for node in nodes),
            _field(2, b"graph"),
            *(_field(5, _tensor(tensor)) for tensor in tensors),
            *(_field(11, _value(value)) for value in inputs),
            *(_field(12, _value(value)) for value in outputs),
        )
    )
    default_domain = _field(1, b"") + _number(2, opset)
    return _number(1, ir_version) + _field(7, graph) + _field(8, default_domain)


def _node(node: Node) -> bytes:
    attributes = (
        # INT, AttributeProto.AttributeType
        _field(5, _field(1, name.encode()) + _number(3, value) + _number(20, 2))
        for name, value in node.attributes.items()
    )
    return _names(1, node.inputs) + _names(2, node.outputs) + _field(4, node.op_type.encode()) + b"".join(attributes)


def _tensor(tensor: Tensor) -> bytes:
    shape = b"".join(_number(1, size) for size in tensor.shape)
    return shape + _number(2, tensor.element_type) + _field(8, tensor.name.encode()) + _field(9, tensor.data)


def _value(value: Value) -> bytes:
    dims = b"".join(
        _field(1, _field(2, size.encode()) if isinstance(size, str) else _number(1, size)) for size in value.shape
    )
    return _field(1, value.name.encode()) + _field(2, _field(1, _number(1, value.element_type) + _field(2, dims)))


def _names(number: int, names: Iterable[str]) -> bytes:
    return b"".join(_field(number, name.encode()) for name in names)


def _field(number: int, content: bytes) -> bytes:
    """A field with a length: a message, a string or bytes."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
