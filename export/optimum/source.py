"""Reads a graph that Optimum's exporter wrote: its inputs and outputs, and the weights that its nodes use.

Weights stay in their file and are mapped on demand. The exporter passes a shared weight through `Identity`, and a tied
head through `Transpose`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from edgekit.errors import ExportError
from edgekit.export.writers.onnx.graph import MODEL_FILE

__all__ = ["Cache", "Source", "Weight"]

_PAST = "past_key_values."
_INPUTS = {"input_ids", "attention_mask", "position_ids"}
_PLAIN = {"", "ai.onnx"}
_RESHAPES = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
_CACHED = {TensorProto.FLOAT, TensorProto.FLOAT16}


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix that a node multiplies by.

    Attributes:
        initializer: Its name in the graph.
        transposed: Whether it is stored `[out, in]`, as in Hugging Face's format, and not `[in, out]`.
        shape: `(out, in)`.
    """

    initializer: str
    transposed: bool
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Cache:
    """One KV cache of the graph, `[batch, heads, past, dim]`."""

    name: str
    heads: int
    dim: int
    element_bytes: int


class Source:
    """A graph whose weights stay in their file.

    Args:
        folder: Contains `model.onnx`.

    Raises:
        ExportError: It has inputs or a cache that the `optimum` dialect does not have.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.model = onnx.load(str(folder / MODEL_FILE), load_external_data=False)
        graph = self.model.graph
        if self.model.functions or graph.sparse_initializer:
            raise ExportError("Optimum's graph has functions or sparse weights, which edgekit does not read")
        self._initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        # The exporter also moves large constants to the weights' file; they are initializers in all but name.
        self._initializers |= {node.output[0]: node.attribute[0].t for node in graph.node if _is_external(node)}
        self.nodes: Sequence[NodeProto] = [node for node in graph.node if not _is_external(node)]
        self._producers = {name: node for node in self.nodes for name in node.output}
        self.caches = tuple(_cache(value) for value in graph.input if value.name.startswith(_PAST))
        self._check_interface()

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits."""
        return int(self._logits().type.tensor_type.shape.dim[2].dim_value)

    @property
    def opsets(self) -> dict[str, int]:
        """Operator set version by domain."""
        return {entry.domain: entry.version for entry in self.model.opset_import}

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache bytes that one token takes."""
        return sum(cache.heads * cache.dim * cache.element_bytes for cache in self.caches)

    def producer(self, value: str) -> NodeProto | None:
        """The node that outputs a value."""
        return self._producers.get(value)

    def has(self, name: str) -> bool:
        """Whether there is an initializer of this name."""
        return name in self._initializers

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Map an initializer."""
        tensor = self._initializers[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            array: npt.NDArray[np.generic] = numpy_helper.to_array(tensor)
            return array
        location = {entry.key: entry.value for entry in tensor.external_data}
        if Path(location["location"]).name != location["location"]:
            raise ExportError(f"the graph looks for its weights in {location['location']}, outside its folder")
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        return np.memmap(self._folder / location["location"], dtype, "r", int(location.get("offset", 0)), shape)

    def weight(self, node: NodeProto) -> Weight | None:
        """The constant matrix that a `MatMul` or `Gemm` multiplies its first input by; a bias must be a vector."""
        if node.op_type not in {"MatMul", "Gemm"} or node.domain not in _PLAIN:
            return None
        attributes = _attributes(node)
        if attributes.get("transA") or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
            return None
        name, transposed = node.input[1], bool(attributes.get("transB"))
        while (producer := self.producer(name)) is not None:
            # Transpose without perm reverses the dimensions, and a matrix has two.
            if producer.op_type == "Transpose" and list(_attributes(producer).get("perm", [1, 0])) == [1, 0]:
                transposed = not transposed
            elif producer.op_type != "Identity":
                return None
            name = producer.input[0]
        tensor = self._matrix(name)
        if tensor is None:
            return None
        rows, columns = tensor.dims
        weight = Weight(name, transposed, (rows, columns) if transposed else (columns, rows))
        if len(node.input) > 2 and node.input[2]:
            bias = self._initializers.get(self._through_identity(node.input[2]))
            if bias is None or list(bias.dims) != [weight.shape[0]]:
                return None
        return weight

    def table(self, node: NodeProto) -> Weight | None:
        """The token embedding, `[vocab, hidden]`, if this node looks up rows in it."""
        if node.op_type != "Gather" or node.domain not in _PLAIN:
            return None
        name = self._through_identity(node.input[0])
        tensor = self._matrix(name)
        if tensor is None or _attributes(node).get("axis", 0) != 0:
            return None
        rows, columns = tensor.dims
        # Position tables, learned or sinusoidal, are looked up by other indices.
        return Weight(name, transposed=True, shape=(rows, columns)) if self._is_tokens(node.input[1]) else None

    def head(self) -> NodeProto | None:
        """The product that gives the logits, if only element-wise operators follow it."""
        value = "logits"
        while (producer := self.producer(value)) is not None:
            if self.weight(producer) is not None:
                return producer
            moving = [name for name in producer.input if name and not self._is_constant(name)]
            if producer.op_type not in {"Add", "Cast", "Div", "Identity", "Mul", "Tanh"} or len(moving) != 1:
                return None
            value = moving[0]
        return None

    def inputs_of(self, node: NodeProto) -> Iterator[str]:
        """Every value that a node reads, including those of its subgraphs."""
        yield from node.input
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
            for graph in graphs:
                yield from (value.name for value in graph.output)
                for inner in graph.node:
                    if _is_external(inner):
                        raise ExportError(f"`{node.name}` has weights in a subgraph, which edgekit does not read")
                    yield from self.inputs_of(inner)

    def _is_tokens(self, name: str) -> bool:
        """Whether a value is the tokens, cast or reshaped."""
        while (producer := self.producer(name)) is not None and producer.op_type in _RESHAPES:
            name = producer.input[0]
        return name == "input_ids"

    def _matrix(self, name: str) -> TensorProto | None:
        tensor = self._initializers.get(name)
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT:
            return None
        return tensor

    def _through_identity(self, name: str) -> str:
        while (producer := self.producer(name)) is not None and producer.op_type == "Identity":
            name = producer.input[0]
        return name

    def _is_constant(self, name: str) -> bool:
        name = self._through_identity(name)
        producer = self.producer(name)
        return name in self._initializers or (producer is not None and producer.op_type == "Constant")

    def _logits(self) -> onnx.ValueInfoProto:
        found: onnx.ValueInfoProto | None = next((v for v in self.model.graph.output if v.name == "logits"), None)
        if found is None:
            raise ExportError("Optimum's graph has no logits: is this a decoder?")
        return found

    def _check_interface(self) -> None:
        names = {value.name for value in self.model.graph.input}
        unknown = sorted(name for name in names if name not in _INPUTS and not name.startswith(_PAST))
        if unknown:
            raise ExportError(
                f"Optimum's graph has the input `{unknown[0]}`, which edgekit cannot fill",
                hint="only text decoders with a plain KV cache can be exported through Optimum",
            )
        if "input_ids" not in names or not self.caches:
            raise ExportError("Optimum's graph has no input for tokens or for the KV cache: is this a decoder?")
        outputs = {value.name for value in self.model.graph.output}
        missing = [f"present.{cache.name.removeprefix(_PAST)}" for cache in self.caches]
        missing = [name for name in missing if name not in outputs]
        if missing:
            raise ExportError(f"Optimum's graph has no output for the KV cache `{missing[0]}`")
        if len(self._logits().type.tensor_type.shape.dim) != 3 or self.vocab_size < 1:
            raise ExportError("the logits of Optimum's graph are not shaped [batch, sequence, vocab]")


def _is_external(node: NodeProto) -> bool:
    """Whether this is a constant stored as external data."""
    return (
        node.op_type == "Constant"
        and len(node.attribute) == 1
        and node.attribute[0].t.data_location == TensorProto.EXTERNAL
    )


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _cache(value: onnx.ValueInfoProto) -> Cache:
    kind = value.type.tensor_type
    dims = kind.shape.dim
    if len(dims) != 4 or not dims[1].dim_value or not dims[3].dim_value or kind.elem_type not in _CACHED:
        shape = [dim.dim_param or dim.dim_value for dim in dims]
        raise ExportError(
            f"Optimum's graph has the KV cache `{value.name}` with shape {shape}, not [batch, heads, past, width]",
            hint="edgekit's runner does not support this architecture's kind of cache",
        )
    size = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return Cache(value.name, dims[1].dim_value, dims[3].dim_value, size)
