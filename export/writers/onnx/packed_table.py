"""A quantized embedding in primitive operators.

TensorRT cannot gather rows of INT4 or INT8, and an FP16 embedding of a large vocabulary is the largest tensor of a
small model. So codes are stored as int32 words, 4 or 8 per word, and only the gathered rows are unpacked, by integer
division.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from edgekit.errors import ExportError
from edgekit.export.quantization.grid import GroupedTensor, Offset
from edgekit.export.writers.onnx.graph import Graph
from edgekit.export.writers.onnx.packing import offset_kind, rows_as_int32

__all__ = ["gather_packed"]

_F32, _INT32 = TensorProto.FLOAT, TensorProto.INT32


# ids ─┬─ Gather(words) ─ unpack ─ Cast ─ Reshape ─ (Sub half) ─ Mul ─ (Add) ─ Reshape ─▶ rows
#      ├─ Gather(scales) ─ Unsqueeze ─ Cast ──────────────────────┘      │
#      └─ (Gather(offsets) ─ Unsqueeze ─ Cast) ──────────────────────────┘
def gather_packed(
    graph: Graph,
    ids: str,
    table: GroupedTensor,
    *,
    name: str,
    path: str,
    cast: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float16 | np.float32]],
) -> str:
    """Return the rows `ids` of a table `[vocab, hidden]`, as float32 `[batch, sequence, hidden]`.

    Args:
        graph: The graph.
        ids: A value, int64 `[batch, sequence]`.
        table: The table, with 4 or 8 bits and any offsets.
        name: Name prefix of the initializers.
        path: Path of the nodes.
        cast: Converts scales and offsets to their stored dtype.

    Raises:
        ExportError: The row size is not a multiple of a word.
    """
    g, per_word = graph, 32 // table.bits
    vocab, hidden = table.shape
    if hidden % per_word:
        raise ExportError(f"`{name}` has rows of {hidden} elements, not a multiple of {per_word}")
    parts = rows_as_int32(table.codes, table.bits)
    packed = g.stream(f"{name}.qweight", _INT32, (vocab, hidden // per_word), parts)
    words = g.node("Gather", [packed, ids], f"{path}/Gather", axis=0)
    codes = _unpack(g, words, table.bits, f"{path}/unpack")
    codes = g.node("Cast", [codes], f"{path}/codes/Cast", to=_F32)
    by_group = g.constant("shape.table_groups", np.array([0, 0, table.scales.shape[1], table.group_size], np.int64))
    codes = g.node("Reshape", [codes, by_group], f"{path}/codes/Reshape")
    symmetric = offset_kind(table) is Offset.SYMMETRIC
    if symmetric:
        half = g.constant("table_half", np.array(1 << (table.bits - 1), np.float32))
        codes = g.node("Sub", [codes, half], f"{path}/codes/Sub")
    scales = g.constant(f"{name}.scales", cast(table.scales))
    rows = g.node("Mul", [codes, _gather(g, scales, ids, f"{path}/scales")], f"{path}/Mul")
    if not symmetric:
        offsets = g.constant(f"{name}.offsets", cast(table.offsets))
        rows = g.node("Add", [rows, _gather(g, offsets, ids, f"{path}/offsets")], f"{path}/Add")
    shape = g.constant("shape.hidden", np.array([0, 0, hidden], np.int64))
    return g.node("Reshape", [rows, shape], f"{path}/Reshape")


def _gather(g: Graph, table: str, ids: str, path: str) -> str:
    rows = g.node("Gather", [table, ids], f"{path}/Gather", axis=0)
    rows = g.node("Unsqueeze", [rows, _last(g)], f"{path}/Unsqueeze")
    return g.node("Cast", [rows], f"{path}/Cast", to=_F32)


# The highest code of a word contains the sign bit, which is removed first: all divisions are then of non-negative
# numbers, for which rounding down and rounding toward zero agree.
#
# words ─┬─ Less 0 ─ Cast (sign) ─ Mul -2³¹ ─┐
#        └─────────────────────────── Sub ───┴─ (rest) ─ Div 2^(bits·i) ─ minus 2^bits × the next ─ + sign ─▶ codes
def _unpack(g: Graph, words: str, bits: int, path: str) -> str:
    per_word = 32 // bits
    zero, lowest = (g.constant(n, np.array(v, np.int32)) for n, v in (("int32.0", 0), ("int32.min", -(2**31))))
    sign = g.node("Cast", [g.node("Less", [words, zero], f"{path}/Less")], f"{path}/sign/Cast", to=_INT32)
    rest = g.node("Sub", [words, g.node("Mul", [sign, lowest], f"{path}/Mul")], f"{path}/Sub")
    rest = g.node("Unsqueeze", [rest, _last(g)], f"{path}/rest/Unsqueeze")
    sign = g.node("Unsqueeze", [sign, _last(g)], f"{path}/sign/Unsqueeze")
    powers = np.array([1 << (bits * i) for i in range(per_word)], np.int32)
    shifted = g.node("Div", [rest, g.constant("unpack.powers", powers)], f"{path}/Div")
    # The next higher code, times 2^bits; zero for the highest code.
    following = np.append(powers[1:], np.int32(2**31 - 1))
    above = g.node("Div", [rest, g.constant("unpack.following", following)], f"{path}/above/Div")
    keep = np.array([1 << bits] * (per_word - 1) + [0], np.int32)
    above = g.node("Mul", [above, g.constant("unpack.keep", keep)], f"{path}/above/Mul")
    codes = g.node("Sub", [shifted, above], f"{path}/codes/Sub")
    top = np.array([0] * (per_word - 1) + [1 << (bits - 1)], np.int32)
    high = g.node("Mul", [sign, g.constant("unpack.top", top)], f"{path}/top/Mul")
    return g.node("Add", [codes, high], f"{path}/Add")


def _last(g: Graph) -> str:
    return g.constant("axis.last", np.array([-1], np.int64))
