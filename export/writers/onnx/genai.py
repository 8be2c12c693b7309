"""A second graph over the same weights, for onnxruntime-genai: it counts by itself what our runner is told.

    input_ids               int64 [batch, sequence]
    attention_mask          int64 [batch, total]    1 for every token in the cache after this step, 0 for padding
    past_key_values.N.key, .value
        ▼
    logits                  fp32  [batch, 1, vocab] of the last token of each sequence
    present.N.key, .value

Two graphs and not one, because a mask grows with every token: our runner's shapes stay the same, which lets
onnxruntime plan its memory once. Each is a file of some hundred kilobytes; the weights are in one data file.

Sources: the names, onnxruntime-genai's src/config.h; that a `1` in the declared shape says that only the last
position's logits come, its `Model::IsPruned` in src/models/model.cpp (0.18).
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edgekit.export.architectures.decoder import Decoder
from edgekit.export.writers.onnx.graph import Graph

__all__ = ["DIALECT", "GENAI_FILE", "count_by_mask"]

DIALECT = "onnxruntime-genai"
GENAI_FILE = "model_genai.onnx"

_F32, _I32, _I64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


# attention_mask ─┬─ ReduceSum ─ Sub 1 ─┬──────────────────── Cast ─▶ seqlens_k [batch]
#                 └─ total ─┬───────────│──────────────────── Cast ─▶ total_sequence_length []
#                           └─ Sub ─┐   │
# input_ids ─────── sequence ─┘    Sub ─┘ ─ Max 0 ─ Unsqueeze ─▶ logits_index [batch, 1, 1]
#
# Prompts of a batch are padded on the right: a shorter one ends before the last position. From then on the mask has
# more ones after its zeros, the sequence is one token, and the difference may be negative.
def count_by_mask(graph: Graph, decoder: Decoder) -> None:
    """Turn the `onnxruntime` dialect's graph into one that takes an attention mask in place of counts."""
    g, path = graph, "/model/counts"
    g.forget("seqlens_k", "total_sequence_length", "logits_index", "logits")
    with g.in_front():
        mask = g.input("attention_mask", _I64, ("batch", "total"))
        g.output("logits", _F32, ("batch", 1, decoder.vocab_size))
        axis = g.constant("axis.1", np.array([1], np.int64))
        zero, one = (g.constant(f"int64.{value}", np.array(value, np.int64)) for value in (0, 1))

        def length(x: str, name: str) -> str:
            size = g.node("Shape", [x], f"{path}/{name}/Shape", start=1, end=2)
            return g.node("Squeeze", [size], f"{path}/{name}/Squeeze")

        seen = g.node("ReduceSum", [mask, axis], f"{path}/ReduceSum", keepdims=0)
        last = g.node("Sub", [seen, one], f"{path}/last/Sub")
        g.node("Cast", [last], f"{path}/last/Cast", output="seqlens_k", to=_I32)
        total = length(mask, "total")
        g.node("Cast", [total], f"{path}/total/Cast", output="total_sequence_length", to=_I32)
        before = g.node("Sub", [total, length("input_ids", "sequence")], f"{path}/before/Sub")
        row = g.node("Sub", [last, before], f"{path}/row/Sub")
        row = g.node("Max", [row, zero], f"{path}/row/Max")
        axes = g.constant("axes.1_2", np.array([1, 2], np.int64))
        g.node("Unsqueeze", [row, axes], f"{path}/row/Unsqueeze", output="logits_index")
