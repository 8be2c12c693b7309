"""Reads a graph that Optimum's exporter wrote: what goes in and out, and which weights its nodes use.

Weights stay in their file and are mapped when one is asked for. It knows the exporter's habits (a shared weight goes
through `Identity`, a tied head through `Transpose`), and no quantization.
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
    """A matrix that a node multiplies with.

    Attributes:
        initializer: Its name in the graph.
        transposed: Whether it is stored `[out, in]`, as Hugging Face does, and not `[in, out]`.
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
    """A graph, its weights left in their file.

    Args:
        folder: Holds `model.onnx`.

    Raises:
        ExportError: It has inputs or a cache that the `optimum` dialect does not.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.model = onnx.load(str(folder / MODEL_FILE), load_external_data=False)
        graph = self.model.graph
        if self.model.functions or graph.sparse_initializer:
            raise ExportError("Optimum's graph has functions or sparse weights, which edgekit does not read")
        self._initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        # The exporter moves large constants to the weights' file too; they are initializers but for the name.
        self._initializers |= {node.output[0]: node.attribute[0].t for node in graph.node if _is_outside(node)}
        self.nodes: Sequence[NodeProto] = [node for node in graph.node if not _is_outside(node)]
        self._makers = {name: node for node in self.nodes for name in node.output}
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

    def maker(self, value: str) -> NodeProto | None:
        """The node that a value comes out of."""
        return self._makers.get(value)

    def has(self, name: str) -> bool:
        """Whether there is an initializer of this name."""
        return name in self._initializers

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Map an initializer."""
        tensor = self._initializers[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            array: npt.NDArray[np.generic] = numpy_helper.to_array(tensor)
            return array
        place = {entry.key: entry.value for entry in tensor.external_data}
        if Path(place["location"]).name != place["location"]:
            raise ExportError(f"the graph looks for its weights in {place['location']}, outside its folder")
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        return np.memmap(self._folder / place["location"], dtype, "r", int(place.get("offset", 0)), shape)

    def weight(self, node: NodeProto) -> Weight | None:
        """The constant matrix that a `MatMul` or a `Gemm` multiplies its first input with; a bias has one dimension."""
        if node.op_type not in {"MatMul", "Gemm"} or node.domain not in _PLAIN:
            return None
        attributes = _attributes(node)
        if attributes.get("transA") or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
            return None
        name, transposed = node.input[1], bool(attributes.get("transB"))
        while (maker := self.maker(name)) is not None:
            # Without a perm Transpose reverses the dimensions, and a matrix has two.
            if maker.op_type == "Transpose" and list(_attributes(maker).get("perm", [1, 0])) == [1, 0]:
                transposed = not transposed
            elif maker.op_type != "Identity":
                return None
            name = maker.input[0]
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
        """The token embedding, `[vocab, hidden]`, if this node looks rows up in it."""
        if node.op_type != "Gather" or node.domain not in _PLAIN:
            return None
        name = self._through_identity(node.input[0])
        tensor = self._matrix(name)
        if tensor is None or _attributes(node).get("axis", 0) != 0:
            return None
        rows, columns = tensor.dims
        # Tables of positions, learned or of sines, are looked up by something else.
        return Weight(name, transposed=True, shape=(rows, columns)) if self._is_tokens(node.input[1]) else None

    def head(self) -> NodeProto | None:
        """The product that gives the logits, if only element-wise operators on them follow it."""
        value = "logits"
        while (maker := self.maker(value)) is not None:
            if self.weight(maker) is not None:
                return maker
            moving = [name for name in maker.input if name and not self._is_constant(name)]
            if maker.op_type not in {"Add", "Cast", "Div", "Identity", "Mul", "Tanh"} or len(moving) != 1:
                return None
            value = moving[0]
        return None

    def inputs_of(self, node: NodeProto) -> Iterator[str]:
        """Every value a node reads, those of its inner graphs too."""
        yield from node.input
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
            for graph in graphs:
                yield from (value.name for value in graph.output)
                for inner in graph.node:
                    if _is_outside(inner):
                        raise ExportError(f"`{node.name}` keeps weights in an inner graph, which edgekit does not read")
                    yield from self.inputs_of(inner)

    def _is_tokens(self, name: str) -> bool:
        """Whether a value is the tokens themselves, in whatever shape."""
        while (maker := self.maker(name)) is not None and maker.op_type in _RESHAPES:
            name = maker.input[0]
        return name == "input_ids"

    def _matrix(self, name: str) -> TensorProto | None:
        tensor = self._initializers.get(name)
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT:
            return None
        return tensor

    def _through_identity(self, name: str) -> str:
        while (maker := self.maker(name)) is not None and maker.op_type == "Identity":
            name = maker.input[0]
        return name

    def _is_constant(self, name: str) -> bool:
        name = self._through_identity(name)
        maker = self.maker(name)
        return name in self._initializers or (maker is not None and maker.op_type == "Constant")

    def _logits(self) -> onnx.ValueInfoProto:
        found: onnx.ValueInfoProto | None = next((v for v in self.model.graph.output if v.name == "logits"), None)
        if found is None:
            raise ExportError("Optimum's graph has no logits: is this a decoder?")
        return found

    def _check_interface(self) -> None:
        names = {value.name for value in self.model.graph.input}
        strange = sorted(name for name in names if name not in _INPUTS and not name.startswith(_PAST))
        if strange:
            raise ExportError(
                f"Optimum's graph has the input `{strange[0]}`, which edgekit does not know how to fill",
                hint="only decoders of text with a plain KV cache can be exported through Optimum",
            )
        if "input_ids" not in names or not self.caches:
            raise ExportError("Optimum's graph has no tokens or no KV cache to hand in: is this a decoder?")
        outputs = {value.name for value in self.model.graph.output}
        missing = [f"present.{cache.name.removeprefix(_PAST)}" for cache in self.caches]
        missing = [name for name in missing if name not in outputs]
        if missing:
            raise ExportError(f"Optimum's graph does not give back the cache `{missing[0]}`")
        if len(self._logits().type.tensor_type.shape.dim) != 3 or self.vocab_size < 1:
            raise ExportError("Optimum's graph gives logits that are not [batch, sequence, vocab]")


def _is_outside(node: NodeProto) -> bool:
    """Whether this is a constant whose bytes are not in the graph's own file."""
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
            f"Optimum's graph has the cache `{value.name}` shaped {shape}, not [batch, heads, past, width]",
            hint="this architecture keeps a cache that edgekit's runner does not know",
        )
    size = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return Cache(value.name, dims[1].dim_value, dims[3].dim_value, size)
