"""ONNX's protobuf messages, limited to the fields that edgekit's graphs use.

Fields that are not read but may change what is computed are named in `ModelProto.unread_parts`. Subgraphs are not read,
so nesting is no deeper than that of the messages below.

Source: onnx/onnx.proto3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from edgekit.errors import BundleError
from edgekit.runners.cpu.onnx_reader.protobuf import Message

__all__ = [
    "INT4",
    "Attribute",
    "ExternalData",
    "ModelProto",
    "NodeProto",
    "Tensor",
    "UnreadAttribute",
    "ValueInfo",
    "parse_model",
]

# TensorProto.DataType
FLOAT, UINT8, INT8, INT32, INT64, FLOAT16, DOUBLE = 1, 2, 3, 6, 7, 10, 11
# numpy has no such dtype: `Graph.int4` reads it.
INT4 = 22
_DTYPES = {
    number: np.dtype(code)
    for number, code in {FLOAT: "<f4", UINT8: "u1", INT8: "i1", INT32: "<i4", INT64: "<i8"}.items()
} | {FLOAT16: np.dtype("<f2"), DOUBLE: np.dtype("<f8")}
# Fields for values outside `raw_data`, and the data types that use them.
_FLOAT_DATA, _INT32_DATA, _INT64_DATA = 4, 5, 7
_IN_FIELD = {FLOAT: _FLOAT_DATA, UINT8: _INT32_DATA, INT8: _INT32_DATA, INT32: _INT32_DATA, INT64: _INT64_DATA}
# AttributeProto.AttributeType
_A_FLOAT, _A_INT, _A_STRING, _A_INTS = 1, 2, 3, 7
_MAX_DIMENSIONS = 8
_EXTERNAL = 1

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class UnreadAttribute:
    """An attribute of a type that is not read, such as a tensor, a graph or floats.

    Attributes:
        kind: `AttributeProto.AttributeType`; 0 if unset.
    """

    kind: int


Attribute = int | float | str | tuple[int, ...] | UnreadAttribute


@dataclass(frozen=True, slots=True)
class NodeProto:
    """An operator applied to values; an empty name stands for an omitted optional one."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Location of a tensor's bytes: file, byte offset, and length (None: implied by the shape)."""

    location: str
    offset: int
    length: int | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """An initializer.

    Attributes:
        name: Name of the value.
        kind: `TensorProto.DataType`.
        shape: Dimensions, each 0 or more.
        data: The location in a data file, the bytes, or the values.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    data: ExternalData | bytes | tuple[float, ...] | tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The numpy dtype; None if it is not supported."""
        return _DTYPES.get(self.kind)


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """An input or output of the graph.

    Attributes:
        name: Name of the value.
        kind: `TensorProto.DataType`; 0 if it is not a tensor.
        shape: A string is a symbolic dimension, `""` an unknown one; None if no shape is given.
    """

    name: str
    kind: int
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True, slots=True)
class ModelProto:
    """The attributes are described in `edgekit.runners.cpu.onnx_reader.onnx_file.Graph`."""

    nodes: tuple[NodeProto, ...]
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    tensors: Mapping[str, Tensor]
    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    unread_parts: tuple[str, ...]


def parse_model(data: bytes) -> ModelProto:
    """Parse a `ModelProto`.

    Raises:
        BundleError: The bytes are not a valid `ModelProto`.
    """
    model = Message(data)
    graph = model.message(7)
    if graph is None:
        raise BundleError("the model file has no graph", hint="check the bundle: edgekit verify DIR")
    nodes = graph.messages(1)
    parts = {
        "training": 20 in model,
        "functions": 25 in model,
        "sparse weights": 15 in graph,
        "overloaded operators": any(node.text(8) for node in nodes),
    }
    return ModelProto(
        nodes=tuple(_node(node) for node in nodes),
        inputs=tuple(_value(value) for value in graph.messages(11)),
        outputs=tuple(_value(value) for value in graph.messages(12)),
        tensors=_unique("weight", ((tensor.name, tensor) for tensor in map(_tensor, graph.messages(5)))),
        opsets=_unique("opset", ((_domain(entry.text(1)), entry.integer(2)) for entry in model.messages(8))),
        metadata=_pairs("metadata", model.messages(14)),
        unread_parts=tuple(name for name, present in parts.items() if present),
    )


def _node(message: Message) -> NodeProto:
    return NodeProto(
        op_type=message.text(4),
        domain=_domain(message.text(7)),
        name=message.text(3),
        inputs=tuple(message.texts(1)),
        outputs=tuple(message.texts(2)),
        attributes=_unique("attribute", map(_attribute, message.messages(5))),
    )


def _attribute(message: Message) -> tuple[str, Attribute]:
    kind = message.integer(20)
    value: Attribute = UnreadAttribute(kind)
    # A reference to a function's attribute has no value of its own.
    if 21 not in message:
        if kind == _A_FLOAT:
            value = message.float(2)
        elif kind == _A_INT:
            value = message.integer(3)
        elif kind == _A_STRING:
            value = message.text(4)
        elif kind == _A_INTS:
            value = tuple(message.integers(8))
    return message.text(1), value


def _tensor(message: Message) -> Tensor:
    name, kind, shape = message.text(8), message.integer(2), tuple(message.integers(1))
    if not name:
        raise BundleError("a weight of the graph has no name")
    if len(shape) > _MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise BundleError(f"weight `{name[:80]}` has an invalid shape")
    if 3 in message:
        raise BundleError(f"weight `{name[:80]}` is stored in segments, which is not supported")
    if message.integer(14) == _EXTERNAL:
        return Tensor(name, kind, shape, _external_data(name, message.messages(13)))
    if raw := message.contents(9):
        return Tensor(name, kind, shape, raw[-1])
    field = _IN_FIELD.get(kind)
    if field == _FLOAT_DATA:
        return Tensor(name, kind, shape, tuple(message.floats(field)))
    # Values of an unsupported data type are not read; `Graph.array` rejects them.
    return Tensor(name, kind, shape, () if field is None else tuple(message.integers(field)))


def _external_data(name: str, entries: Sequence[Message]) -> ExternalData:
    fields, numbers = _pairs("external data key", entries), {}
    for key in ("offset", "length"):
        if (text := fields.get(key)) is None:
            continue
        # int() would accept signs, spaces and non-ASCII digits.
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise BundleError(f"weight `{name[:80]}` has `{text[:40]}` as its {key}")
        numbers[key] = int(text)
    return ExternalData(fields.get("location", ""), numbers.get("offset", 0), numbers.get("length"))


def _value(message: Message) -> ValueInfo:
    described = message.message(2)
    tensor = described and described.message(1)
    if not tensor:
        return ValueInfo(message.text(1), 0, None)
    shape = tensor.message(2)
    dimensions = None if shape is None else tuple(map(_dimension, shape.messages(1)))
    return ValueInfo(message.text(1), tensor.integer(1), dimensions)


def _dimension(message: Message) -> int | str:
    return message.integer(1) if 1 in message else message.text(2)


def _domain(name: str) -> str:
    """Normalize the two names of the default domain."""
    return "" if name == "ai.onnx" else name


def _pairs(what: str, entries: Iterable[Message]) -> dict[str, str]:
    return _unique(what, ((entry.text(1), entry.text(2)) for entry in entries))


def _unique(what: str, items: Iterable[tuple[str, _T]]) -> dict[str, _T]:
    found: dict[str, _T] = {}
    for name, value in items:
        if name in found:
            raise BundleError(f"the graph has a duplicate {what} `{name[:80]}`")
        found[name] = value
    return found
