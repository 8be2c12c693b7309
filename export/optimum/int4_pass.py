"""Quantizes the weight matrices of Optimum's graph, and copies everything else unchanged.

    x ─ MatMul [in, out] ─▶            x ─ MatMulNBits ─▶
    x ─ Gemm (weight, bias) ─▶         x ─ MatMulNBits (bias within) ─▶
    ids ─ Gather [vocab, hidden] ─▶    ids ─ GatherBlockQuantized ─▶
    x ─ head ─▶ logits                 x ─ Gather (logits_index) ─ head ─▶ logits

One matrix is in memory at a time. A matrix is named after the node that uses it, whatever the architecture. Matrices
that no group size divides stay in floating point.

Source of the operators: onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto

from edgekit import __version__
from edgekit.errors import ExportError, option
from edgekit.export.architectures.decoder import Linear
from edgekit.export.optimum.source import Source, Weight
from edgekit.export.progress import Report, silent
from edgekit.export.quantization.grid import GroupedTensor, Offset
from edgekit.export.recipes.recipe import Recipe
from edgekit.export.writers.onnx.graph import DATA_FILE, MODEL_FILE, Graph
from edgekit.export.writers.onnx.packing import lookup_needs, nearest_zero_points, nibbles, offset_kind, pack_rows

__all__ = ["FILES", "quantize_graph"]

FILES = (MODEL_FILE, DATA_FILE)
_MICROSOFT = "com.microsoft"
_U8, _I64 = TensorProto.UINT8, TensorProto.INT64
_ROWS = "logits_index"


@dataclass(frozen=True, slots=True)
class _Stored:
    """A matrix that has been written.

    Attributes:
        weight: The name of its codes, or of its floats `[in, out]` if the recipe did not quantize it.
        rest: The names of its scales and, unless all are the midpoint, its zero points.
        shape: `(out, in)`.
        bits: Bits per code; 0 for floats.
        group_size: Inputs per group.
    """

    weight: str
    rest: tuple[str, ...]
    shape: tuple[int, int]
    bits: int = 0
    group_size: int = 0


def quantize_graph(
    source: Source,
    folder: Path,
    recipe: Recipe,
    *,
    context_length: int,
    accuracy_level: int = 4,
    report: Report = silent,
) -> Counter[str]:
    """Write `model.onnx` and its data file, in the `optimum` dialect.

    Args:
        source: The graph in floating point.
        folder: The output folder.
        recipe: How to quantize each matrix.
        context_length: For the metadata.
        accuracy_level: Of `MatMulNBits`: 4 rounds activations to 8 bits per block, which is several times faster; 1
            computes in float32.
        report: Receives progress.

    Returns:
        The number of matrices per treatment.

    Raises:
        ExportError: The recipe gives a grid that onnxruntime cannot represent.
    """
    with Graph(folder, {**source.opsets, _MICROSOFT: 1}) as graph:
        work = _Pass(source, graph, recipe, accuracy_level, report)
        work.run()
        metadata = {"edgekit.dialect": "optimum", "edgekit.context_length": str(context_length)}
        graph.save(metadata | work.needs, producer_version=__version__)
    return work.used


class _Pass:
    def __init__(self, source: Source, graph: Graph, recipe: Recipe, accuracy_level: int, report: Report) -> None:
        self._source = source
        self._graph = graph
        self._recipe = recipe
        self._accuracy_level = accuracy_level
        self._report = report
        self._stored: dict[tuple[str, bool], _Stored] = {}
        self._tables: list[tuple[Weight, _Stored]] = []
        self._names: set[str] = set()
        self.used: Counter[str] = Counter()
        self.needs: dict[str, str] = {}

    def run(self) -> None:
        """Write inputs and outputs, then node by node, then the weights that are still used."""
        source, head = self._source, self._source.head()
        for value in source.model.graph.input:
            self._graph.input(value.name, value.type.tensor_type.elem_type, _dims(value))
        if head is not None:
            self._graph.input(_ROWS, _I64, ["rows"])
        for value in source.model.graph.output:
            dims = _dims(value)
            if value.name == "logits" and head is not None:
                dims[1] = "rows"
            self._graph.output(value.name, value.type.tensor_type.elem_type, dims)
        kept = self._kept_nodes()
        total = sum(self._matrix_of(node) is not None for node in kept)
        done = 0
        for node in kept:
            reduced = self._with_row_selection(node) if node is head else node
            matrix = self._matrix_of(node)
            if matrix is None:
                self._graph.copy(reduced)
                continue
            if node.op_type == "Gather":
                self._look_up(reduced, matrix)
            else:
                self._multiply(reduced, matrix)
            done += 1
            self._report("quantize and write", done, total)
        for name in dict.fromkeys(name for node in kept for name in self._remaining_inputs(node)):
            if source.has(name):
                self._graph.constant(name, np.asarray(source.read(name)))

    def _matrix_of(self, node: NodeProto) -> Weight | None:
        """The matrix of a node, if it is to be replaced."""
        matrix = self._source.table(node) if node.op_type == "Gather" else self._source.weight(node)
        if matrix is None or self._recipe.method == "none":
            return None
        return matrix if any(matrix.shape[1] % size == 0 for size in self._recipe.group_sizes) else None

    def _kept_nodes(self) -> list[NodeProto]:
        """The nodes whose outputs are still used; a `Transpose` of a replaced matrix is not one of them."""
        needed = {value.name for value in self._source.model.graph.output}
        kept = []
        for node in reversed(self._source.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(self._remaining_inputs(node))
        matrices = [node for node in kept if (self._source.weight(node) or self._source.table(node)) is not None]
        left = sum(self._matrix_of(node) is None for node in matrices)
        if left:
            self.used["floating point" if self._recipe.method == "none" else "floating point, no group size fits"] += (
                left
            )
        return kept[::-1]

    def _remaining_inputs(self, node: NodeProto) -> list[str]:
        """A node's inputs without a matrix that is to be replaced."""
        inputs = list(self._source.inputs_of(node))
        if self._matrix_of(node) is not None:
            del inputs[0 if node.op_type == "Gather" else 1]
        return inputs

    # x ─ Gather(axis 1, logits_index) ─▶ head: the largest product is computed only for the requested rows.
    def _with_row_selection(self, head: NodeProto) -> NodeProto:
        reduced = NodeProto()
        reduced.CopyFrom(head)
        reduced.input[0] = self._graph.node("Gather", [head.input[0], _ROWS], f"{_path(head)}/rows/Gather", axis=1)
        return reduced

    def _multiply(self, node: NodeProto, weight: Weight) -> None:
        """Write the product with a matrix, after the recipe."""
        path, bias = _path(node), node.input[2] if len(node.input) > 2 else ""
        stored = self._store(weight, path)
        inputs = [node.input[0], stored.weight, *stored.rest]
        if not stored.bits:
            product = self._graph.node("MatMul", inputs, f"{path}/MatMul", output=None if bias else node.output[0])
            if bias:
                self._graph.node("Add", [product, bias], f"{path}/Add", output=node.output[0])
            return
        if bias:
            # Inputs 3 and 4 are the zero points and an index of groups.
            inputs += [""] * (5 - len(inputs)) + [bias]
        self._graph.node(
            "MatMulNBits",
            inputs,
            f"{path}/MatMulNBits",
            output=node.output[0],
            domain=_MICROSOFT,
            K=stored.shape[1],
            N=stored.shape[0],
            bits=stored.bits,
            block_size=stored.group_size,
            accuracy_level=self._accuracy_level,
        )

    def _look_up(self, node: NodeProto, table: Weight) -> None:
        """Write the lookup in a table, after the recipe."""
        path, stored = _path(node), self._store(table, _path(node))
        if not stored.bits:
            rows = self._graph.node("Transpose", [stored.weight], f"{path}/Transpose", perm=[1, 0])
            self._graph.node("Gather", [rows, node.input[1]], f"{path}/Gather", output=node.output[0], axis=0)
            return
        out, inner = stored.shape
        self.needs |= lookup_needs(stored.bits, inner // stored.group_size, zero_points=len(stored.rest) > 1)
        flat = self._graph.alias(f"{stored.weight}.rows", _U8, (out, inner * stored.bits // 8), stored.weight)
        self._graph.node(
            "GatherBlockQuantized",
            [flat, node.input[1], *stored.rest],
            f"{path}/GatherBlockQuantized",
            output=node.output[0],
            domain=_MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            block_size=stored.group_size,
            bits=stored.bits,
        )
        self._tables.append((table, stored))

    def _store(self, weight: Weight, path: str) -> _Stored:
        """Quantize and write a matrix, once for all nodes that use it."""
        key = (weight.initializer, weight.transposed)
        if key not in self._stored:
            self._stored[key] = self._same_as_table(weight) or self._quantize(weight, path)
        return self._stored[key]

    def _quantize(self, weight: Weight, path: str) -> _Stored:
        linear = Linear(path.strip("/").replace("/", "."), weight.shape[1], weight.shape[0])
        array = self._source.read(weight.initializer)
        matrix = np.ascontiguousarray(array if weight.transposed else array.T, np.float32)
        tensor, treatment = self._recipe.apply(linear, matrix, "F32")
        self.used[treatment] += 1
        name = linear.weight if linear.weight not in self._names else f"{weight.initializer}.weight"
        self._names.add(name)
        if isinstance(tensor, GroupedTensor):
            return self._write(tensor, name)
        return _Stored(self._graph.constant(name, tensor.T), (), weight.shape)

    def _write(self, tensor: GroupedTensor, name: str) -> _Stored:
        g, groups = self._graph, tensor.scales.shape[1]
        kind = offset_kind(tensor)
        if kind is Offset.FLOAT:
            raise ExportError(
                f"the grid of `{name}` has offsets that are not zero points", hint=f"try {option('recipe', 'lsq')}"
            )
        shape = (tensor.shape[0], groups, tensor.group_size * tensor.bits // 8)
        packed = g.stream(f"{name}.qweight", _U8, shape, pack_rows(tensor.codes, tensor.bits))
        rest = [g.constant(f"{name}.scales", tensor.scales)]
        if kind is Offset.ZERO_POINT:
            points, _ = nearest_zero_points(tensor)
            if tensor.bits == 4:
                points = nibbles(np.pad(points, ((0, 0), (0, groups % 2))))
            rest.append(g.constant(f"{name}.zero_points", points))
        return _Stored(packed, tuple(rest), tensor.shape, tensor.bits, tensor.group_size)

    # The exporter writes a tied head as a transposed copy of the table; here its bytes are stored once.
    def _same_as_table(self, weight: Weight) -> _Stored | None:
        for table, stored in self._tables:
            if table.shape != weight.shape:
                continue
            one, other = self._source.read(table.initializer), self._source.read(weight.initializer)
            other = other if weight.transposed else other.T
            if all(np.array_equal(one[i : i + 4096], other[i : i + 4096]) for i in range(0, len(one), 4096)):
                return stored
        return None


def _path(node: NodeProto) -> str:
    """`/model/layers.0/self_attn/q_proj` of a node `/model/layers.0/self_attn/q_proj/MatMul`."""
    name = node.name or node.output[0]
    return name.rpartition("/")[0] or name


def _dims(value: ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
