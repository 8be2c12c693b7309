"""Matches a graph against expected patterns and rejects any node that no pattern consumed.

A pattern requests the producer of a value by operator, number of inputs and attributes; at the end, every node must
have been requested. So a graph is either understood completely or rejected with the name of a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError
from edgekit.runners.cpu.onnx_reader.onnx_file import Graph
from edgekit.runners.cpu.onnx_reader.onnx_proto import INT4, Attribute, NodeProto

__all__ = ["MICROSOFT", "Attributes", "GraphMatcher", "Unsupported", "integer", "unsupported"]

MICROSOFT = "com.microsoft"
_MATRIX = 2

Attributes = Mapping[str, Attribute | type]
"""Required attributes of a node: each one's value, or its type if any value is accepted."""


class Unsupported(RunnerError):  # noqa: N818  not an error of the caller
    """Raised when a valid graph is not one the kernels support; the caller falls back to onnxruntime."""


class GraphMatcher:
    """Finds the producers of values, and records which nodes were matched.

    Attributes:
        graph: The graph.

    Args:
        graph: The graph.

    Raises:
        Unsupported: The nodes are not sorted topologically, or a value has two producers.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._producers: dict[str, tuple[NodeProto, int]] = {}
        self._matched: set[int] = set()
        known = {value.name for value in graph.inputs} | graph.tensors.keys()
        if len(known) != len(graph.inputs) + len(graph.tensors) or "" in known:
            raise Unsupported("two values of the graph have the same name")
        for node in graph.nodes:
            for name in node.inputs:
                # This also rules out cycles.
                if name and name not in known:
                    raise unsupported(node, f"reads `{name[:80]}`, which no earlier node produces")
            for at, name in enumerate(node.outputs):
                if not name:
                    continue
                if name in known:
                    raise unsupported(node, f"produces `{name[:80]}`, which already exists")
                known.add(name)
                self._producers[name] = node, at

    def producer(self, value: str) -> NodeProto | None:
        """Return the node that produces a value; None for inputs and initializers of the graph."""
        return self._producers[value][0] if value in self._producers else None

    def match(
        self,
        value: str,
        op: str,
        attributes: Attributes | None = None,
        *,
        domain: str = "",
        inputs: Sequence[int] = (1,),
        output: int = 0,
        outputs: int = 1,
    ) -> NodeProto:
        """Match and return the node that produces a value.

        Args:
            value: The name of the value.
            op: The operator.
            attributes: All attributes of the node.
            domain: The operator's domain.
            inputs: Accepted numbers of inputs.
            output: Index of the value among the node's outputs.
            outputs: Number of outputs.

        Raises:
            Unsupported: The node does not match.
        """
        if value not in self._producers:
            raise Unsupported(f"`{value[:80]}` is an input of the graph; expected the output of a {op}")
        node, at = self._producers[value]
        if (node.op_type, node.domain) != (op, domain):
            raise unsupported(node, f"is not the expected {op}")
        if len(node.inputs) not in inputs or len(node.outputs) != outputs or at != output:
            raise unsupported(node, "has an unexpected number of inputs or outputs")
        wanted = attributes or {}
        if node.attributes.keys() != wanted.keys():
            names = ", ".join(sorted(node.attributes.keys() ^ wanted.keys()))
            raise unsupported(node, f"has unexpected or missing attributes: {names[:80]}")
        for name, expected in wanted.items():
            found = node.attributes[name]
            # Types must agree too: in Python 0 == False and 1 == 1.0.
            same = type(found) is expected if isinstance(expected, type) else _same(found, expected)
            if not same:
                raise unsupported(node, f"has {str(found)[:40]} for its `{name}`")
        self._matched.add(id(node))
        return node

    def assert_all_matched(self) -> None:
        """Check that every node was matched.

        Raises:
            Unsupported: A node was not.
        """
        for node in self.graph.nodes:
            if id(node) not in self._matched:
                raise unsupported(node, "is not part of any known pattern")

    def array(
        self, node: NodeProto, name: str, dtype: type[np.generic], shape: Sequence[int | None]
    ) -> npt.NDArray[Any]:
        """Return an initializer that a node reads.

        Args:
            node: The node, for error messages.
            name: The name of the value.
            dtype: The expected dtype.
            shape: The expected shape; None accepts any size above 0.

        Raises:
            Unsupported: The value is not an initializer, or of another dtype or shape.
            BundleError: Its bytes are missing.
        """
        tensor = self.graph.tensors.get(name)
        if tensor is None:
            raise unsupported(node, f"reads `{name[:80]}`, which is not a weight")
        fits = len(tensor.shape) == len(shape) and all(
            found == wanted or (wanted is None and found > 0)
            for found, wanted in zip(tensor.shape, shape, strict=False)
        )
        if tensor.dtype != np.dtype(dtype) or not fits:
            raise unsupported(
                node, f"reads `{name[:80]}`, which has another dtype or shape {tensor.shape} than expected"
            )
        return self.graph.array(name)

    def int4(self, node: NodeProto, name: str) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
        """Return the bytes of an INT4 matrix that a node reads, and its shape; see `Graph.int4`.

        Raises:
            Unsupported: The value is not an INT4 initializer with two dimensions, each above 0.
            BundleError: Its bytes are missing.
        """
        tensor = self.graph.tensors.get(name)
        if tensor is None or tensor.kind != INT4 or len(tensor.shape) != _MATRIX or min(tensor.shape) < 1:
            raise unsupported(node, f"reads `{name[:80]}`, which is no INT4 matrix")
        return self.graph.int4(name), (tensor.shape[0], tensor.shape[1])

    def expect(self, node: NodeProto, name: str, values: npt.NDArray[np.generic]) -> None:
        """Check that an input of a node is an initializer with this dtype, shape and values.

        Raises:
            Unsupported: It is not.
        """
        found = self.array(node, name, values.dtype.type, values.shape)
        if not np.array_equal(found, values):
            raise unsupported(node, f"reads {str(found.tolist())[:80]} instead of {str(values.tolist())[:80]}")

    def expect_ints(self, node: NodeProto, name: str, values: Sequence[int]) -> None:
        """Check that an input of a node is an int64 initializer `[n]` with these values.

        Raises:
            Unsupported: It is not.
        """
        self.expect(node, name, np.array(values, np.int64))


def integer(node: NodeProto, name: str) -> int:
    """Return an attribute that was matched as an integer."""
    value = node.attributes[name]
    if not isinstance(value, int):
        raise unsupported(node, f"has no integer `{name}`")
    return value


def unsupported(node: NodeProto, what: str) -> Unsupported:
    """Return the error for a node that does not match."""
    return Unsupported(f"the kernels cannot run this graph: `{node.name[:80]}` ({node.op_type[:40]}) {what}")


def _same(found: Attribute, expected: Attribute) -> bool:
    return type(found) is type(expected) and found == expected
