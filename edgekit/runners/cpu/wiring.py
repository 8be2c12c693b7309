"""Follows the names of values through a graph, and lets nothing pass that is not said.

Whoever reads a pattern asks for the node that makes a value, by operator, number of inputs and attributes, and at the
end whether every node was asked for. So a graph is either understood whole or refused with a node's name: never
half read. It knows no transformer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError
from edgekit.runners.cpu.graph import Graph
from edgekit.runners.cpu.messages import Attribute, Node

__all__ = ["MICROSOFT", "Attributes", "Unsupported", "Wiring", "integer", "refused"]

MICROSOFT = "com.microsoft"

Attributes = Mapping[str, Attribute | type]
"""What a node must have: each attribute's value, or where any will do its type."""


class Unsupported(RunnerError):  # noqa: N818  no fault, but a question answered
    """A sound graph that is not of the one pattern that the kernels compute: onnxruntime may run it."""


class Wiring:
    """Which node makes which value.

    Attributes:
        graph: The graph.

    Args:
        graph: The graph.

    Raises:
        Unsupported: A node reads what nothing before it makes, or a value is made twice.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._made: dict[str, tuple[Node, int]] = {}
        self._taken: set[int] = set()
        known = {value.name for value in graph.inputs} | graph.tensors.keys()
        if len(known) != len(graph.inputs) + len(graph.tensors) or "" in known:
            raise Unsupported("a value of the graph is given twice")
        for node in graph.nodes:
            for name in node.inputs:
                # So no path through the graph can be a circle.
                if name and name not in known:
                    raise refused(node, f"reads `{name[:80]}`, which nothing before it makes")
            for at, name in enumerate(node.outputs):
                if not name:
                    continue
                if name in known:
                    raise refused(node, f"makes `{name[:80]}`, which is there already")
                known.add(name)
                self._made[name] = node, at

    def maker(self, value: str) -> Node | None:
        """The node that makes a value; None where the graph is given it."""
        return self._made[value][0] if value in self._made else None

    def take(
        self,
        value: str,
        op: str,
        attributes: Attributes | None = None,
        *,
        domain: str = "",
        inputs: Sequence[int] = (1,),
        output: int = 0,
        outputs: int = 1,
    ) -> Node:
        """Return the node that makes a value, if it is exactly this one.

        Args:
            value: The value.
            op: The operator.
            attributes: All that it has.
            domain: Of the operator.
            inputs: How many inputs it may have.
            output: Which of its outputs the value is.
            outputs: How many outputs it has.

        Raises:
            Unsupported: It is another.
        """
        if value not in self._made:
            raise Unsupported(f"`{value[:80]}` is given to the graph; a {op} should make it")
        node, at = self._made[value]
        if (node.op_type, node.domain) != (op, domain):
            raise refused(node, f"stands where a {op} should")
        if len(node.inputs) not in inputs or len(node.outputs) != outputs or at != output:
            raise refused(node, "has other inputs or outputs than ours")
        wanted = attributes or {}
        if node.attributes.keys() != wanted.keys():
            names = ", ".join(sorted(node.attributes.keys() ^ wanted.keys()))
            raise refused(node, f"has other attributes than ours: {names[:80]}")
        for name, expected in wanted.items():
            found = node.attributes[name]
            # Zero is zero and false, and 1 is 1.0: the types must agree too.
            fits = type(found) is expected if isinstance(expected, type) else _same(found, expected)
            if not fits:
                raise refused(node, f"has {str(found)[:40]} for its `{name}`")
        self._taken.add(id(node))
        return node

    def all_taken(self) -> None:
        """Make sure that every node was asked for.

        Raises:
            Unsupported: One was not.
        """
        for node in self.graph.nodes:
            if id(node) not in self._taken:
                raise refused(node, "has no place in our graphs")

    def array(self, node: Node, name: str, dtype: type[np.generic], shape: Sequence[int | None]) -> npt.NDArray[Any]:
        """Return an initializer that a node reads.

        Args:
            node: Who reads it.
            name: Of the value.
            dtype: What it must be of.
            shape: And shaped like; None stands for any size.

        Raises:
            Unsupported: It is no initializer, or of another type or shape.
            BundleError: Its bytes are not there.
        """
        tensor = self.graph.tensors.get(name)
        if tensor is None:
            raise refused(node, f"reads `{name[:80]}`, which should be a weight")
        fits = len(tensor.shape) == len(shape) and all(
            found == wanted or (wanted is None and found > 0)
            for found, wanted in zip(tensor.shape, shape, strict=False)
        )
        if tensor.dtype != np.dtype(dtype) or not fits:
            raise refused(node, f"reads `{name[:80]}`, which has the type or the shape {tensor.shape} of another")
        return self.graph.array(name)

    def expect_ints(self, node: Node, name: str, values: Sequence[int]) -> None:
        """Make sure that an input of a node is an initializer of these numbers, int64 `[n]`.

        Raises:
            Unsupported: It is not.
        """
        found = self.array(node, name, np.int64, (len(values),))
        if found.tolist() != list(values):
            raise refused(node, f"is told {found.tolist()} instead of {list(values)}")


def integer(node: Node, name: str) -> int:
    """An attribute that `Wiring.take` was told is an integer."""
    value = node.attributes[name]
    if not isinstance(value, int):
        raise refused(node, f"has no integer for its `{name}`")
    return value


def refused(node: Node, what: str) -> Unsupported:
    """The error for a node that is not as ours are."""
    return Unsupported(f"the kernels cannot run this graph: `{node.name[:80]}` ({node.op_type[:40]}) {what}")


def _same(found: Attribute, expected: Attribute) -> bool:
    return type(found) is type(expected) and found == expected
