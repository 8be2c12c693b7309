"""Derives the model of a bundle from its graph, in any of edgekit's dialects, so that the CPU kernels can run it.

Names prove nothing: the graph is matched from its logits to its token ids, and rejected if a single node or attribute
differs from what the dialect's writer in `edgekit.export.writers.onnx` writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import BundleError
from edgekit.runners.cpu.limits import check_limits
from edgekit.runners.cpu.model import LayerDescription, Matrix, ModelDescription
from edgekit.runners.cpu.onnx_reader.match_layers import Layers
from edgekit.runners.cpu.onnx_reader.match_matrices import Matrices
from edgekit.runners.cpu.onnx_reader.match_native import NativeLayers
from edgekit.runners.cpu.onnx_reader.match_portable import PortableLayers
from edgekit.runners.cpu.onnx_reader.match_tensorrt import TensorRtLayers
from edgekit.runners.cpu.onnx_reader.match_tensorrt_matrices import TensorRtMatrices
from edgekit.runners.cpu.onnx_reader.matcher import MICROSOFT, GraphMatcher, Unsupported, unsupported
from edgekit.runners.cpu.onnx_reader.onnx_file import Graph, read_graph
from edgekit.runners.cpu.onnx_reader.onnx_proto import FLOAT, ValueInfo

__all__ = ["LayerDescription", "Matrix", "ModelDescription", "Unsupported", "describe"]

_MODEL_FILE = "model.onnx"
_TENSORRT: Mapping[str, type[TensorRtLayers]] = {"portable": PortableLayers, "native": NativeLayers}
# Other versions of an operator may compute something else.
_OPSETS = {"onnxruntime": {"": 20, MICROSOFT: 1}} | {name: layers.opsets for name, layers in _TENSORRT.items()}


def describe(folder: Path, dialect: str | None = None) -> ModelDescription:
    """Describe a bundle's model, without reading its weights.

    Args:
        folder: Contains `model.onnx` and its data file.
        dialect: The expected dialect: `onnxruntime`, `portable` or `native`; None accepts each of them.

    Raises:
        BundleError: The graph is missing, damaged, or in another dialect.
        Unsupported: The graph is valid, but its pattern or a size is not supported.
    """
    path = folder / _MODEL_FILE
    if not path.exists():
        raise BundleError(f"{folder} has no {_MODEL_FILE}", hint="is this an ONNX bundle?")
    graph = read_graph(path)
    written = graph.metadata.get("edgekit.dialect", "unknown")
    if written not in _OPSETS or dialect not in {None, written}:
        raise BundleError(
            f"{path} is written in the `{written[:40]}` dialect, not in `{dialect or '`, `'.join(_OPSETS)}`",
            hint="export the model for this device's target",
            code="bundle_incompatible",
        )
    if graph.unread_parts:
        raise Unsupported(f"the kernels cannot run this graph: it has {', '.join(graph.unread_parts)}")
    if graph.opsets != _OPSETS[written]:
        raise Unsupported(f"the kernels cannot run this graph: it uses the opsets {str(graph.opsets)[:80]}")
    model = _described(graph, written, _context(graph.metadata))
    check_limits(model)
    return model


# input_ids ─ rows of the embedding ─ (Mul scale) ─ layers ─ head ─▶ logits
def _described(graph: Graph, dialect: str, context: int) -> ModelDescription:
    matcher = GraphMatcher(graph)
    matrices: Matrices | TensorRtMatrices
    layers: Layers | TensorRtLayers
    if dialect in _TENSORRT:
        matrices = TensorRtMatrices(matcher)
        logits = matcher.match("logits", "Cast", {"to": FLOAT}).inputs[0]
        normed, head = matrices.linear(logits, may_have_bias=False)
        layers = _TENSORRT[dialect](matcher, matrices, head.shape[1])
    else:
        matrices = Matrices(matcher)
        normed, head = matrices.linear("logits")
        layers = Layers(matcher, matrices, head.shape[1])
    vocab, hidden = head.shape
    stack = layers.read(normed)
    rows, scale = _scaled(matcher, stack.entry)
    embedding = matrices.lookup(rows, "input_ids")
    matcher.assert_all_matched()
    if embedding.shape != head.shape:
        raise Unsupported(f"the embedding has the shape {embedding.shape}, the head {head.shape}")
    _check_ends(graph, *layers.ends(stack, vocab))
    positions = stack.ropes[0][0].shape[0]
    if context > positions:
        raise BundleError(f"the graph declares a context of {context} tokens, but has {positions} positions")
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
        release_pages=graph.release_pages,
    )


def _scaled(matcher: GraphMatcher, value: str) -> tuple[str, float | None]:
    """Match the scale of the embedding; return the unscaled rows and the scale, or None."""
    producer = matcher.producer(value)
    if producer is None or (producer.op_type, producer.domain) != ("Mul", ""):
        return value, None
    node = matcher.match(value, "Mul", inputs=(2,))
    scale = float(matcher.array(node, node.inputs[1], np.float32, ()))
    if not math.isfinite(scale):
        raise unsupported(node, f"multiplies by {scale}")
    return node.inputs[0], scale


def _check_ends(graph: Graph, inputs: Sequence[ValueInfo], outputs: Sequence[ValueInfo]) -> None:
    """Check that the graph has exactly the inputs and outputs that the matched nodes use."""
    for expected, found in ((inputs, graph.inputs), (outputs, graph.outputs)):
        by_name = {value.name: value for value in found}
        for value in expected:
            if by_name.pop(value.name, None) != value:
                raise Unsupported(f"the kernels cannot run this graph: its `{value.name}` is missing or differs")
        if by_name:
            raise Unsupported(f"the kernels cannot run this graph: it has an additional `{min(by_name)[:80]}`")


def _same_bytes(one: Matrix, other: Matrix) -> bool:
    """Whether two matrices are the same bytes under two names."""
    pairs: list[tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]] = [
        (one.codes, other.codes),
        (one.scales, other.scales),
        (one.zero_points, other.zero_points),
        (one.float_offsets, other.float_offsets),
        (one.bias, other.bias),
    ]
    grids = [(matrix.bits, matrix.group_size, matrix.shape, matrix.by_columns) for matrix in (one, other)]
    return grids[0] == grids[1] and all(
        a is b if a is None or b is None else a.__array_interface__ == b.__array_interface__ for a, b in pairs
    )


def _context(metadata: Mapping[str, str]) -> int:
    text = metadata.get("edgekit.context_length", "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise BundleError(f"the graph's metadata has `{text[:40]}` for `edgekit.context_length`")
    return int(text)
