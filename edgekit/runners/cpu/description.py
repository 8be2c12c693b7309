"""Says what model a bundle of the `onnxruntime` dialect holds, so that other kernels than onnxruntime's can run it.

Nothing is guessed from names: a graph is followed from its logits to its tokens, and one that differs from what
`edgekit.export.writers.onnx.ort` writes, in a single node or attribute, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import BundleError
from edgekit.runners.cpu.graph import Graph, read_graph
from edgekit.runners.cpu.layers import Layers, Stack
from edgekit.runners.cpu.matrices import Matrices
from edgekit.runners.cpu.messages import Value
from edgekit.runners.cpu.model import LayerDescription, Matrix, ModelDescription
from edgekit.runners.cpu.sizes import check_sizes
from edgekit.runners.cpu.wiring import Unsupported, Wiring, refused

__all__ = ["LayerDescription", "Matrix", "ModelDescription", "Unsupported", "describe"]

_MODEL_FILE, _DIALECT = "model.onnx", "onnxruntime"
# What its operators mean; another version may mean something else.
_OPSETS = {"": 20, "com.microsoft": 1}
_FLOAT, _INT32, _INT64 = 1, 6, 7


def describe(folder: Path) -> ModelDescription:
    """Read the description of a bundle's model; its weights stay in their file.

    Args:
        folder: Holds `model.onnx` and its data file.

    Raises:
        BundleError: There is no such graph, it is damaged, or of another dialect.
        Unsupported: The graph is sound, and not of the one pattern that is known here, or of a size that is not.
    """
    path = folder / _MODEL_FILE
    if not path.exists():
        raise BundleError(f"{folder} has no {_MODEL_FILE}", hint="is this a bundle exported for the cpu target?")
    graph = read_graph(path)
    written = graph.metadata.get("edgekit.dialect", "unknown")
    if written != _DIALECT:
        raise BundleError(
            f"{path} is written in the `{written[:40]}` dialect, not in `{_DIALECT}`",
            hint="export the model for this device's target",
            code="bundle_incompatible",
        )
    if graph.foreign:
        raise Unsupported(f"the kernels cannot run this graph: it has {', '.join(graph.foreign)}")
    if graph.opsets != _OPSETS:
        raise Unsupported(f"the kernels cannot run this graph: its operators are of versions {str(graph.opsets)[:80]}")
    model = _described(graph, _context(graph.metadata))
    check_sizes(model)
    return model


# input_ids ─ rows of the table ─ (Mul scale) ─ layers ─ head ─▶ logits
def _described(graph: Graph, context: int) -> ModelDescription:
    wiring = Wiring(graph)
    matrices = Matrices(wiring)
    normed, head = matrices.linear("logits")
    vocab, hidden = head.shape
    stack = Layers(wiring, matrices, hidden).read(normed)
    rows, scale = _scaled(wiring, stack.entry)
    embedding = matrices.table(rows, "input_ids")
    wiring.all_taken()
    if embedding.shape != head.shape:
        raise Unsupported(f"the token table is of {embedding.shape}, the head of {head.shape}")
    _check_ends(graph, stack, vocab)
    positions = stack.ropes[0][0].shape[0]
    if context > positions:
        raise BundleError(f"the graph is said to take {context} tokens, and has {positions} positions")
    return ModelDescription(
        vocab_size=vocab,
        hidden=hidden,
        intermediate=stack.sizes.intermediate,
        heads=stack.sizes.heads,
        kv_heads=stack.sizes.kv_heads,
        head_dim=stack.sizes.head_dim,
        rms_norm_eps=stack.eps,
        activation=stack.sizes.activation,
        embedding=embedding,
        embedding_scale=scale,
        layers=stack.layers,
        final_norm=stack.final_norm,
        head=embedding if _same_bytes(embedding, head) else head,
        ropes=stack.ropes,
        positions=positions,
        context_length=context,
        metadata=MappingProxyType(dict(graph.metadata)),
        let_go=graph.let_go,
    )


def _scaled(wiring: Wiring, value: str) -> tuple[str, float | None]:
    """The rows of the token table that a value is, and what they are multiplied by."""
    maker = wiring.maker(value)
    if maker is None or (maker.op_type, maker.domain) != ("Mul", ""):
        return value, None
    node = wiring.take(value, "Mul", inputs=(2,))
    scale = float(wiring.array(node, node.inputs[1], np.float32, ()))
    if not math.isfinite(scale):
        raise refused(node, f"multiplies by {scale}")
    return node.inputs[0], scale


def _check_ends(graph: Graph, stack: Stack, vocab: int) -> None:
    """Make sure that the graph is given and gives just what the nodes were found to read and make."""
    cache = ("batch", stack.sizes.kv_heads, "capacity", stack.sizes.head_dim)
    given = [
        Value("input_ids", _INT64, ("batch", "sequence")),
        Value("seqlens_k", _INT32, ("batch",)),
        Value("total_sequence_length", _INT32, ()),
        Value("logits_index", _INT64, ("batch", "rows", 1)),
    ]
    makes = [Value("logits", _FLOAT, ("batch", "rows", vocab))]
    for index in range(len(stack.layers)):
        given += [Value(f"past_key_values.{index}.{part}", _FLOAT, cache) for part in ("key", "value")]
        makes += [Value(f"present.{index}.{part}", _FLOAT, cache) for part in ("key", "value")]
    for expected, found in ((given, graph.inputs), (makes, graph.outputs)):
        by_name = {value.name: value for value in found}
        for value in expected:
            if by_name.pop(value.name, None) != value:
                raise Unsupported(f"the kernels cannot run this graph: its `{value.name}` is missing or another")
        if by_name:
            raise Unsupported(f"the kernels cannot run this graph: it also has `{min(by_name)[:80]}`")


def _same_bytes(one: Matrix, other: Matrix) -> bool:
    """Whether two matrices are one, read under two names."""
    pairs: list[tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]] = [
        (one.codes, other.codes),
        (one.scales, other.scales),
        (one.zero_points, other.zero_points),
        (one.rest, other.rest),
        (one.bias, other.bias),
    ]
    grids = [(matrix.bits, matrix.group_size, matrix.shape) for matrix in (one, other)]
    return grids[0] == grids[1] and all(
        a is b if a is None or b is None else a.__array_interface__ == b.__array_interface__ for a, b in pairs
    )


def _context(metadata: Mapping[str, str]) -> int:
    text = metadata.get("edgekit.context_length", "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise BundleError(f"the graph has `{text[:40]}` for the tokens that it takes")
    return int(text)
