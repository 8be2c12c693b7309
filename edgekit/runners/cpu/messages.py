"""ONNX's messages, as far as a graph of ours has them. It knows no file and no operator.

Parts that are left out but may change what is computed are named in `Model.foreign`. Subgraphs are not looked into, so
nothing nests deeper here than the messages below do.

Source: onnx/onnx.proto3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from edgekit.errors import BundleError
from edgekit.runners.cpu.wire import Message

__all__ = ["Attribute", "Model", "Node", "Opaque", "Place", "Tensor", "Value", "parse_model"]

# TensorProto.DataType
FLOAT, UINT8, INT8, INT32, INT64, FLOAT16, DOUBLE = 1, 2, 3, 6, 7, 10, 11
_DTYPES = {
    number: np.dtype(code)
    for number, code in {FLOAT: "<f4", UINT8: "u1", INT8: "i1", INT32: "<i4", INT64: "<i8"}.items()
} | {FLOAT16: np.dtype("<f2"), DOUBLE: np.dtype("<f8")}
# Fields of values that are not in `raw_data`, and the types whose values are in them.
_FLOAT_DATA, _INT32_DATA, _INT64_DATA = 4, 5, 7
_IN_FIELD = {FLOAT: _FLOAT_DATA, UINT8: _INT32_DATA, INT8: _INT32_DATA, INT32: _INT32_DATA, INT64: _INT64_DATA}
# AttributeProto.AttributeType
_A_FLOAT, _A_INT, _A_STRING, _A_INTS = 1, 2, 3, 7
_MOST_DIMENSIONS = 8
_EXTERNAL = 1

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Opaque:
    """An attribute of a type that is not read: a tensor, a graph, several floats.

    Attributes:
        kind: `AttributeProto.AttributeType`; 0 where none is said.
    """

    kind: int


Attribute = int | float | str | tuple[int, ...] | Opaque


@dataclass(frozen=True, slots=True)
class Node:
    """An operator applied to values; an empty name among them stands for one that is left out."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes are: in which file, from which byte on, and how many (None: as many as it needs)."""

    location: str
    offset: int
    length: int | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """An initializer.

    Attributes:
        name: Of the value.
        kind: `TensorProto.DataType`.
        shape: Every dimension 0 or more.
        data: A place in a data file, the bytes themselves, or the values.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    data: Place | bytes | tuple[float, ...] | tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The type as numpy has it; None where it is not known here."""
        return _DTYPES.get(self.kind)


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of the graph.

    Attributes:
        name: Of the value.
        kind: `TensorProto.DataType`; 0 where it is no tensor.
        shape: A text is a dimension that is open, `""` one of which nothing is said; None where no shape is given.
    """

    name: str
    kind: int
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True, slots=True)
class Model:
    """See `edgekit.runners.cpu.graph.Graph`."""

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    tensors: Mapping[str, Tensor]
    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    foreign: tuple[str, ...]


def parse_model(data: bytes) -> Model:
    """Read a `ModelProto`.

    Raises:
        BundleError: The bytes are none.
    """
    model = Message(data)
    graph = model.message(7)
    if graph is None:
        raise BundleError("the model file holds no graph", hint="check the bundle: edgekit verify DIR")
    nodes = graph.messages(1)
    parts = {
        "training": 20 in model,
        "functions": 25 in model,
        "sparse weights": 15 in graph,
        "overloaded operators": any(node.text(8) for node in nodes),
    }
    return Model(
        nodes=tuple(_node(node) for node in nodes),
        inputs=tuple(_value(value) for value in graph.messages(11)),
        outputs=tuple(_value(value) for value in graph.messages(12)),
        tensors=_unique("weight", ((tensor.name, tensor) for tensor in map(_tensor, graph.messages(5)))),
        opsets=_unique("opset", ((_domain(entry.text(1)), entry.integer(2)) for entry in model.messages(8))),
        metadata=_pairs("metadata", model.messages(14)),
        foreign=tuple(name for name, there in parts.items() if there),
    )


def _node(message: Message) -> Node:
    return Node(
        op_type=message.text(4),
        domain=_domain(message.text(7)),
        name=message.text(3),
        inputs=tuple(message.texts(1)),
        outputs=tuple(message.texts(2)),
        attributes=_unique("attribute", map(_attribute, message.messages(5))),
    )


def _attribute(message: Message) -> tuple[str, Attribute]:
    kind = message.integer(20)
    value: Attribute = Opaque(kind)
    # One that refers to an attribute of a function has no value of its own.
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
        raise BundleError("the graph has a weight without a name")
    if len(shape) > _MOST_DIMENSIONS or any(size < 0 for size in shape):
        raise BundleError(f"weight `{name[:80]}` has no possible shape")
    if 3 in message:
        raise BundleError(f"weight `{name[:80]}` is a segment of another")
    if message.integer(14) == _EXTERNAL:
        return Tensor(name, kind, shape, _place(name, message.messages(13)))
    if raw := message.contents(9):
        return Tensor(name, kind, shape, raw[-1])
    field = _IN_FIELD.get(kind)
    if field == _FLOAT_DATA:
        return Tensor(name, kind, shape, tuple(message.floats(field)))
    # Of a type that is not known, no values are read, nor asked for.
    return Tensor(name, kind, shape, () if field is None else tuple(message.integers(field)))


def _place(name: str, entries: Sequence[Message]) -> Place:
    place, numbers = _pairs("place", entries), {}
    for key in ("offset", "length"):
        if (text := place.get(key)) is None:
            continue
        # int() would take signs, spaces and the digits of every script.
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise BundleError(f"weight `{name[:80]}` has `{text[:40]}` for its {key}")
        numbers[key] = int(text)
    return Place(place.get("location", ""), numbers.get("offset", 0), numbers.get("length"))


def _value(message: Message) -> Value:
    described = message.message(2)
    tensor = described and described.message(1)
    if not tensor:
        return Value(message.text(1), 0, None)
    shape = tensor.message(2)
    dimensions = None if shape is None else tuple(map(_dimension, shape.messages(1)))
    return Value(message.text(1), tensor.integer(1), dimensions)


def _dimension(message: Message) -> int | str:
    return message.integer(1) if 1 in message else message.text(2)


def _domain(name: str) -> str:
    """ONNX's own has two names."""
    return "" if name == "ai.onnx" else name


def _pairs(what: str, entries: Iterable[Message]) -> dict[str, str]:
    return _unique(what, ((entry.text(1), entry.text(2)) for entry in entries))


def _unique(what: str, items: Iterable[tuple[str, _T]]) -> dict[str, _T]:
    found: dict[str, _T] = {}
    for name, value in items:
        if name in found:
            raise BundleError(f"the graph has two of {what} `{name[:80]}`")
        found[name] = value
    return found
