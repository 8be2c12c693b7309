"""A second graph over the same weights, for onnxruntime 1.32: several sequences with several tokens each in one pass.

    query_seqlens           int32 [batch]          how many of a sequence's tokens count: the rest is padding
                                                   (beside the inputs of the `onnxruntime` dialect)

Without this input attention takes a batch of one token each, or one sequence. Older versions of onnxruntime (and with
them Python 3.10) cannot load a graph that has it, so it is a file of its own: some hundred kilobytes.

Source of the operators: onnxruntime's docs/ContribOperators.md (1.32).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from onnx import TensorProto

from edgekit.export.writers.onnx.graph import Graph

__all__ = ["BATCHED_FILE", "METADATA", "counted_rows"]

BATCHED_FILE = "model_batched.onnx"
METADATA: Mapping[str, str] = {"edgekit.onnxruntime": "1.32"}

# Of GroupQueryAttention.
_QUERY_SEQLENS = 16


@contextmanager
def counted_rows(graph: Graph) -> Iterator[None]:
    """Let the `onnxruntime` dialect's graph take `query_seqlens` meanwhile."""
    attentions = graph.nodes_of("GroupQueryAttention")
    plain = [len(node.input) for node in attentions]
    graph.input("query_seqlens", TensorProto.INT32, ("batch",))
    for node in attentions:
        node.input.extend([""] * (_QUERY_SEQLENS - len(node.input)) + ["query_seqlens"])
    yield
    graph.forget("query_seqlens")
    for node, count in zip(attentions, plain, strict=True):
        del node.input[count:]
