"""Cuts a graph into graphs of consecutive layers, which run one after another give what the whole graph gives.

The graph is a chain of units: the embedding, each decoder layer, and the output head with its norm. A segment is a run
of units. What passes from one to the next is the residual stream (FP32 `[batch, sequence, hidden]`; behind the last
layer `[batch, rows, hidden]`). Whatever else a segment needs, such as masks or RoPE tables, is found by walking back
from its outputs to inputs of the graph and initializers, and computed again in each segment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from edgekit.errors import ConfigError, RunnerError, option
from edgekit.runners.cpu.onnx_reader.onnx_proto import NodeProto, ValueInfo
from edgekit.runners.tensorrt.graph_file import FLOAT, INT4, GraphFile, tensor_bytes, with_inputs

__all__ = ["Chain", "Segment"]

_CACHE = re.compile(r"(?:past_key_values|present)\.([0-9]+)\.(key|value)")


@dataclass(frozen=True, slots=True)
class Segment:
    """A graph of consecutive units.

    Attributes:
        first_layer: Its first decoder layer; None if it has none.
        last_layer: Its last decoder layer.
        boundary: The input that the segment before puts out; None in the first segment.
        inputs: Its inputs.
        outputs: Its outputs.
        model: A serialized `ModelProto`.
        graph_bytes: Bytes of its initializers.
        int4_bytes: Bytes of those stored as INT4.
        largest_bytes: Bytes of the largest matrix that is multiplied by, all its planes together.
        products: Names of the nodes that multiply by an INT4 matrix.
        nodes: Number of nodes.
    """

    first_layer: int | None
    last_layer: int | None
    boundary: str | None
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    model: bytes
    graph_bytes: int
    int4_bytes: int
    largest_bytes: int
    products: tuple[str, ...]
    nodes: int

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return 0 if self.first_layer is None or self.last_layer is None else self.last_layer - self.first_layer + 1

    @property
    def caches(self) -> dict[str, str | None]:
        """By input of the KV cache, the output that is the same cache, if any."""
        outputs = {value.name: value for value in self.outputs}
        found: dict[str, str | None] = {}
        for value in self.inputs:
            if _CACHE.fullmatch(value.name):
                name = value.name.replace("past_key_values", "present")
                found[value.name] = name if outputs[name].shape == value.shape else None
        return found


class Chain:
    """The units of a graph.

    Args:
        graph: The graph.
        capacity: Positions of a `native` cache: TensorRT does not parse one of unknown length.

    Raises:
        RunnerError: The graph is not a chain of layers.
    """

    def __init__(self, graph: GraphFile, capacity: int | None = None) -> None:
        self._graph = graph
        self._known = {} if capacity is None else {"capacity": capacity}
        self._nodes: Sequence[NodeProto] = graph.model.nodes
        self._producer = {name: index for index, node in enumerate(self._nodes) for name in node.outputs if name}
        self._inputs = {value.name: self._fixed(value) for value in graph.model.inputs}
        self._outputs = {value.name: self._fixed(value) for value in graph.model.outputs}
        self._by_name = {node.name: node for node in self._nodes}
        caches = [name for name in self._inputs if _CACHE.fullmatch(name)]
        missing = {"logits", *(name.replace("past_key_values", "present") for name in caches)} - {*self._outputs}
        if missing:
            raise self._unknown(f"it has no output `{min(missing)}`")
        self.layers = sorted({int(match[1]) for name in self._inputs if (match := _CACHE.fullmatch(name))})
        # Before unit i; None before the first.
        self._boundaries: list[ValueInfo | None] = [None, *self._residuals()]

    @property
    def path(self) -> Path:
        """The model file, beside which the weights are."""
        return self._graph.path

    @property
    def dialect(self) -> str:
        """The graph's dialect."""
        return self._graph.dialect

    def __len__(self) -> int:
        """The number of units: the most segments that there can be."""
        return len(self._boundaries)

    @cached_property
    def unit_bytes(self) -> tuple[int, ...]:
        """Bytes of each unit's initializers; what several units need is counted in each."""
        return tuple(self._cut(index, index + 1).graph_bytes for index in range(len(self)))

    def cut(self, count: int) -> tuple[Segment, ...]:
        """Return `count` segments, the largest of which is as small as possible.

        Raises:
            ConfigError: There are fewer units than that.
        """
        if not 1 <= count <= len(self):
            raise ConfigError(
                f"the model can be cut into at most {len(self)} segments, not {count}",
                hint=f"{option('segments', value=len(self))} is a segment for each layer, the embedding and the head",
            )
        stops = _balanced(self.unit_bytes, count)
        return tuple(self._cut(start, stop) for start, stop in zip((0, *stops), stops, strict=False))

    def _residuals(self) -> Iterable[ValueInfo]:
        """The residual stream behind the embedding and behind each layer."""
        batch, sequence = self._shape("input_ids")
        (rows,) = self._shape("logits_index")
        hidden = self._hidden()
        before = self._node("/model/layers.{}/attn/residual/Add", self.layers[0] if self.layers else 0).inputs[0]
        gather = self._nodes[self._producer[before]] if before in self._producer else None
        if gather is not None and gather.name.endswith("/rows/Gather"):  # the only layer is the last one
            before = gather.inputs[0]
        yield ValueInfo(before, FLOAT, (batch, sequence, hidden))
        for layer in self.layers:
            name = self._node("/model/layers.{}/mlp/residual/Add", layer).outputs[0]
            yield ValueInfo(name, FLOAT, (batch, rows if layer == self.layers[-1] else sequence, hidden))

    def _hidden(self) -> int:
        """The width of the residual stream: that of the last norm's weight."""
        for name in ("/model/norm/Mul", "/model/norm/RMSNormalization"):
            node = self._by_name.get(name)
            if node is not None and node.inputs[1] in self._graph.model.tensors:
                return self._graph.model.tensors[node.inputs[1]].shape[0]
        raise self._unknown("it has no norm before the output head")

    def _node(self, pattern: str, layer: int) -> NodeProto:
        name = pattern.format(layer)
        if name not in self._by_name:
            raise self._unknown(f"it has no node `{name}`")
        return self._by_name[name]

    def _shape(self, name: str) -> tuple[int | str, ...]:
        if name not in self._inputs or self._inputs[name].shape is None:
            raise self._unknown(f"it has no input `{name}`")
        return self._inputs[name].shape or ()

    def _cut(self, start: int, stop: int) -> Segment:
        boundary = self._boundaries[start]
        layers = [layer for unit, layer in enumerate(self.layers, start=1) if start <= unit < stop]
        wanted = [value for name, value in self._outputs.items() if _layer_of(name) in layers]
        wanted.append((self._boundaries[stop] if stop < len(self) else None) or self._outputs["logits"])
        used = self._needed([value.name for value in wanted], boundary)
        before = {self._producer.get(one.name) for one in self._boundaries[1 : start + 1] if one is not None}
        if before & {*used}:
            raise self._unknown("a layer reads what was computed before the one in front of it")
        raws, read, products = [], dict[str, None](), []
        matrices: dict[str, int] = {}
        packed: set[str] = set()
        for index in used:
            node, raw = self._nodes[index], self._graph.raw_nodes[index]
            inputs = self._own_cache(node, layers)
            raws.append(raw if inputs == node.inputs else with_inputs(raw, node, inputs))
            read |= dict.fromkeys(inputs)
            if node.op_type != "Gather":  # which reads only some rows of a table
                path = node.name.rpartition("/")[0]
                matrices[path] = matrices.get(path, 0) + sum(map(self._size, inputs))
            if node.op_type == "DequantizeLinear" and self._is_int4(node.inputs[0]):
                packed.add(node.outputs[0])
            elif node.op_type == "MatMul" and packed & {*node.inputs}:
                products.append(node.name)
        inputs_of = [value for name, value in self._inputs.items() if name in read]
        tensors = [name for name in self._graph.model.tensors if name in read]
        declared = inputs_of if boundary is None else [boundary, *inputs_of]
        sizes = {name: self._size(name) for name in tensors}
        return Segment(
            first_layer=layers[0] if layers else None,
            last_layer=layers[-1] if layers else None,
            boundary=None if boundary is None else boundary.name,
            inputs=tuple(declared),
            outputs=tuple(wanted),
            model=self._graph.encode(raws, tensors, declared, wanted),
            graph_bytes=sum(sizes.values()),
            int4_bytes=sum(size for name, size in sizes.items() if self._is_int4(name)),
            largest_bytes=max(matrices.values(), default=0),
            products=tuple(products),
            nodes=len(raws),
        )

    def _needed(self, outputs: Iterable[str], boundary: ValueInfo | None) -> list[int]:
        """Indices of the nodes that compute `outputs`, in the graph's order, from the boundary on."""
        found: set[int] = set()
        pending = list(outputs)
        while pending:
            name = pending.pop()
            index = self._producer.get(name)
            if index is None or index in found or (boundary is not None and name == boundary.name):
                continue
            found.add(index)
            pending += self._nodes[index].inputs
        return sorted(found)

    def _own_cache(self, node: NodeProto, layers: Sequence[int]) -> tuple[str, ...]:
        """A node's inputs, with a cache of this segment where it reads only the shape of another one's."""
        foreign = {name for name in node.inputs if (layer := _layer_of(name)) is not None and layer not in layers}
        if not foreign:
            return node.inputs
        if node.op_type != "Shape" or not layers:
            raise self._unknown(f"`{node.name}` reads the KV cache of another layer")
        # All caches have the same number of blocks.
        return tuple(name.replace(f".{_layer_of(name)}.", f".{layers[0]}.") for name in node.inputs)

    def _size(self, name: str) -> int:
        """Bytes of an initializer; 0 for another value."""
        tensor = self._graph.model.tensors.get(name)
        return 0 if tensor is None else tensor_bytes(tensor)

    def _is_int4(self, name: str) -> bool:
        tensor = self._graph.model.tensors.get(name)
        return tensor is not None and tensor.kind == INT4

    def _fixed(self, value: ValueInfo) -> ValueInfo:
        """A declaration with the known dimensions as numbers."""
        if value.shape is None:
            return value
        shape = tuple(self._known.get(size, size) if isinstance(size, str) else size for size in value.shape)
        return replace(value, shape=shape)

    def _unknown(self, why: str) -> RunnerError:
        return RunnerError(f"{self._graph.path} is not a chain of layers: {why}", hint="export the model again")


def _layer_of(name: str) -> int | None:
    match = _CACHE.fullmatch(name)
    return int(match[1]) if match else None


def _balanced(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    """Where each of `count` runs of units stops, so that the largest run is as small as possible."""
    total = [0]
    for size in sizes:
        total.append(total[-1] + size)
    # best[stop]: of the units before `stop`, the largest run, the sum of squares (the most even of equals), the stops.
    best: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    for runs in range(1, count + 1):
        best = {
            stop: min(
                (max(largest, run), squares + run * run, (*stops, stop))
                for start, (largest, squares, stops) in best.items()
                if start < stop
                for run in (total[stop] - total[start],)
            )
            for stop in range(runs, len(sizes) - (count - runs) + 1)
        }
    return best[len(sizes)][2]
