"""A second graph over the same weights, for onnxruntime-genai: it computes lengths from an attention mask.

    input_ids               int64 [batch, sequence]
    attention_mask          int64 [batch, total]    1 for every token in the cache after this step, 0 for padding
    past_key_values.N.key, .value
        ▼
    logits                  fp32  [batch, 1, vocab] of the last token of each sequence
    present.N.key, .value

The two graphs are separate because a mask grows with every token, while the inputs of our runner keep their shapes,
which lets onnxruntime plan its memory once. Each is a file of a few hundred kilobytes; they share one data file.

Sources: onnxruntime-genai's src/config.h for the names; `Model::IsPruned` in src/models/model.cpp (0.18) for the `1` in
the declared shape, which means that only the last position's logits are returned.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edgekit.export.architectures.decoder import Decoder
from edgekit.export.writers.onnx.graph import Graph

__all__ = ["DIALECT", "GENAI_FILE", "with_attention_mask"]

DIALECT = "onnxruntime-genai"
GENAI_FILE = "model_genai.onnx"

_F32, _I32, _I64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


# attention_mask ─┬─ ReduceSum ─ Sub 1 ─┬──────────────────── Cast ─▶ seqlens_k [batch]
#                 └─ total ─┬───────────│──────────────────── Cast ─▶ total_sequence_length []
#                           └─ Sub ─┐   │
# input_ids ─────── sequence ─┘    Sub ─┘ ─ Max 0 ─ Unsqueeze ─▶ logits_index [batch, 1, 1]
#
# Prompts of a batch are right-padded, so a shorter one ends before the last position. In later steps the sequence is
# one token, the mask has ones after the zeros of the padding, and the difference may be negative.
def with_attention_mask(graph: Graph, decoder: Decoder) -> None:
    """Convert the `onnxruntime` dialect's graph to take an attention mask instead of lengths."""
    g, path = graph, "/model/counts"
    g.undeclare("seqlens_k", "total_sequence_length", "logits_index", "logits")
    with g.prepend():
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
