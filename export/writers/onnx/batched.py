"""A second graph over the same weights, for onnxruntime 1.32: several sequences with several tokens each in one pass.

    query_seqlens           int32 [batch]          number of valid tokens of each sequence; the rest is padding
                                                   (in addition to the inputs of the `onnxruntime` dialect)

Without this input, attention supports either one token per sequence or a single sequence. Older versions of onnxruntime
(all that run on Python 3.10) cannot load a graph that has it, so it is a separate file of a few hundred kilobytes.

Source of the operators: onnxruntime's docs/ContribOperators.md (1.32).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from onnx import TensorProto

from edgekit.export.writers.onnx.graph import Graph

__all__ = ["BATCHED_FILE", "METADATA", "with_query_seqlens"]

BATCHED_FILE = "model_batched.onnx"
METADATA: Mapping[str, str] = {"edgekit.onnxruntime": "1.32"}

# Index of the input of GroupQueryAttention.
_QUERY_SEQLENS = 16


@contextmanager
def with_query_seqlens(graph: Graph) -> Iterator[None]:
    """Add the input `query_seqlens` to the `onnxruntime` dialect's graph within the context."""
    attentions = graph.nodes_of("GroupQueryAttention")
    input_counts = [len(node.input) for node in attentions]
    graph.input("query_seqlens", TensorProto.INT32, ("batch",))
    for node in attentions:
        node.input.extend([""] * (_QUERY_SEQLENS - len(node.input)) + ["query_seqlens"])
    yield
    graph.undeclare("query_seqlens")
    for node, count in zip(attentions, input_counts, strict=True):
        del node.input[count:]
