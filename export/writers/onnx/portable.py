"""The `portable` dialect: opset 21, primitive operators only, for TensorRT 10.3 and later (and any ONNX runtime).

    input_ids        int64 [batch, sequence]
    position_ids     int64 [batch, sequence]
    attention_mask   fp16  [batch, 1, sequence, total]      additive: 0 where a token may look, else -65504
    logits_index     int64 [rows]                           positions of `sequence` whose logits are wanted
    past_key_values.N.key, .value   fp16 [batch, kv_heads, past, head_dim]
        ▼
    logits           fp32  [batch, rows, vocab]
    present.N.key, .value           fp16 [batch, kv_heads, sequence, head_dim]

with total = past + sequence. `present` holds the rows of the new tokens *only*: the graph reads the cache where it
lies and never copies it, and the runner puts the new rows behind it. `past` may be padded to a bucket, so long as
the mask hides the padding: positions come from `position_ids` alone.

The network is strongly typed. Weights are INT4 `[in, out]` behind a block `DequantizeLinear` along axis 0, which
TensorRT keeps as INT4 up to the matrix multiplication; activations are FP16. The residual stream, the norms and the
softmax are FP32: Qwen2.5 has activations that FP16 cannot add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Decoder, Layer, Linear
from edgekit.export.quantization.grid import GroupedTensor
from edgekit.export.writers.base import Progress, Weights
from edgekit.export.writers.onnx.graph import Graph
from edgekit.export.writers.onnx.offsets import OffsetTerms
from edgekit.export.writers.onnx.packed_table import gather_packed
from edgekit.export.writers.onnx.packing import int4_columns, int4_planes
from edgekit.export.writers.onnx.rope import rope_tables

__all__ = ["OPSETS", "Portable"]

OPSETS = {"": 21}

Half = npt.NDArray[np.float16 | np.float32]
"""What `dtype` says: half precision, or single for parity tests."""

_INT64 = TensorProto.INT64
_F32 = TensorProto.FLOAT


@dataclass(frozen=True, slots=True)
class _Shared:
    """Values that every layer reads: RoPE of these positions, the mask, and the shapes attention moves between."""

    cos: str
    sin: str
    mask: str
    past: str
    grouped: str
    flat: str


@dataclass(frozen=True, slots=True)
class _Stored:
    """A matrix whose bytes are written already: what of it the graph can name.

    Attributes:
        weight: A float matrix `[in, out]`; None where it is quantized.
        planes: Name prefix, INT4 weights and scales of each plane.
        offsets: What the planes leave of the offsets, `[groups, out]`; None where that is nothing.
        groups: Groups along the inputs.
        size: Inputs in a group.
    """

    weight: str | None
    planes: tuple[tuple[str, str, str], ...] = ()
    offsets: str | None = None
    groups: int = 0
    size: int = 0


class Portable:
    """Writes one model into one graph.

    Args:
        graph: Where to.
        decoder: The model.
        weights: Its numbers.
        progress: Called with the name of each tensor once it is written.
        dtype: Of activations, float weights, scales and the KV cache: float16, or float32 for parity tests.
    """

    def __init__(
        self,
        graph: Graph,
        decoder: Decoder,
        weights: Weights,
        progress: Progress,
        dtype: type[np.float16 | np.float32] = np.float16,
    ) -> None:
        self._g = graph
        self._d = decoder
        self._w = weights
        self._progress = progress
        self._np = dtype
        self._offsets = OffsetTerms(graph)
        self._type = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT

    def write(self) -> None:
        """Write inputs, layers and outputs."""
        g, d = self._g, self._d
        ids = g.input("input_ids", _INT64, ("batch", "sequence"))
        positions = g.input("position_ids", _INT64, ("batch", "sequence"))
        mask = g.input("attention_mask", self._type, ("batch", 1, "sequence", "total"))
        rows = g.input("logits_index", _INT64, ("rows",))
        g.output("logits", _F32, ("batch", "rows", d.vocab_size))
        for layer in d.layers:
            for part in ("key", "value"):
                tail = (d.num_kv_heads, "past", d.head_dim)
                g.input(f"past_key_values.{layer.index}.{part}", self._type, ("batch", *tail))
                g.output(f"present.{layer.index}.{part}", self._type, ("batch", d.num_kv_heads, "sequence", d.head_dim))
        residual, head = self._embed(ids)
        shared = self._shared(positions, mask)
        for layer in d.layers:
            residual = self._layer(layer, residual, shared, rows if layer is d.layers[-1] else None)
        normed = self._norm(residual, d.final_norm, "/model/norm")
        logits = self._linear(normed, d.head, "/lm_head") if head is None else self._apply(normed, head, "/lm_head")
        g.node("Cast", [logits], "/lm_head/Cast", output="logits", to=_F32)

    # ids ─ Gather ─ Cast ─▶ residual (fp32)
    #
    # A tied head is stored here too, so that the table, which is the largest tensor, is forgotten before the layers.
    # A float table serves both ends as it is: TensorRT multiplies by a transposed constant without copying it. A
    # quantized one is written a second time, because the head wants INT4 [hidden, vocab] and the embedding int32 rows.
    def _embed(self, ids: str) -> tuple[str, _Stored | None]:
        g, d, name, path = self._g, self._d, self._d.embedding.weight, "/model/embed_tokens"
        table, head = self._w.matrix(d.embedding), None
        if isinstance(table, GroupedTensor):
            rows = gather_packed(g, ids, table, name=name, path=path, cast=self._cast)
            if d.tied:
                head = self._store(table, d.head.weight)
        else:
            weight = g.constant(name, self._cast(table))
            rows = g.node("Gather", [weight, ids], f"{path}/Gather", axis=0)
            rows = g.node("Cast", [rows], f"{path}/Cast", to=_F32)
            if d.tied:
                head = _Stored(g.node("Transpose", [weight], "/lm_head/Transpose", perm=[1, 0]))
        self._progress(name)
        return rows, head

    # position_ids ─ Gather(cos, sin) ─ Unsqueeze ─▶ [batch, 1, sequence, head_dim / 2]
    #
    # attention_mask ─ Cast ─ Unsqueeze ─▶ fp32 [batch, 1, 1, sequence, total]
    #                └ Shape ─▶ [batch, kv_heads, group, sequence, total] and [batch, kv_heads, -1, total]
    def _shared(self, positions: str, mask: str) -> _Shared:
        g, d = self._g, self._d
        one = self._int64("axis.1", [1])
        angles = []
        for part, values in zip(("cos", "sin"), rope_tables(d.rope, d.max_position), strict=True):
            table = g.constant(f"{part}_cache", self._cast(values))
            rows = g.node("Gather", [table, positions], f"/model/rotary/{part}/Gather", axis=0)
            angles.append(g.node("Unsqueeze", [rows, one], f"/model/rotary/{part}/Unsqueeze"))
        path = "/model/attn_mask"
        mask32 = g.node("Cast", [mask], f"{path}/Cast", to=_F32)
        mask32 = g.node("Unsqueeze", [mask32, self._int64("axis.2", [2])], f"{path}/Unsqueeze")
        shape = g.node("Shape", [mask], f"{path}/Shape")
        batch, sequence, total = (
            g.node("Gather", [shape, self._int64(f"index.{i}", [i])], f"{path}/{dim}", axis=0)
            for i, dim in ((0, "batch"), (2, "sequence"), (3, "total"))
        )
        heads = self._int64("kv_heads", [d.num_kv_heads])
        group = self._int64("group", [d.num_heads // d.num_kv_heads])
        free = self._int64("axis.last", [-1])
        return _Shared(
            cos=angles[0],
            sin=angles[1],
            mask=mask32,
            past=g.node("Sub", [total, sequence], f"{path}/past"),
            grouped=g.node("Concat", [batch, heads, group, sequence, total], f"{path}/grouped", axis=0),
            flat=g.node("Concat", [batch, heads, free, total], f"{path}/flat", axis=0),
        )

    # residual ─┬─ norm ─ attention ─ o_proj ─ Cast ─ Add ─┬─ norm ─ mlp ─ Cast ─ Add ─▶ residual
    #           └──────────────────────────────────────────┘└────────────────────┘
    # The last layer drops, after its attention, every position whose logits nobody wants.
    def _layer(self, layer: Layer, residual: str, shared: _Shared, rows: str | None) -> str:
        g, path = self._g, f"/model/layers.{layer.index}"
        normed = self._norm(residual, layer.input_norm, f"{path}/input_layernorm")
        attended = self._attention(layer, normed, shared, f"{path}/attn")
        if rows is not None:
            attended = g.node("Gather", [attended, rows], f"{path}/attn/rows/Gather", axis=1)
            residual = g.node("Gather", [residual, rows], f"{path}/rows/Gather", axis=1)
        residual = self._add(residual, self._linear(attended, layer.o, f"{path}/attn/o_proj"), f"{path}/attn/residual")
        normed = self._norm(residual, layer.mlp_norm, f"{path}/post_attention_layernorm")
        return self._add(residual, self._mlp(layer, normed, f"{path}/mlp"), f"{path}/mlp/residual")

    def _add(self, residual: str, branch: str, path: str) -> str:
        return self._g.node("Add", [residual, self._g.node("Cast", [branch], f"{path}/Cast", to=_F32)], f"{path}/Add")

    # x (fp32) ─┬─ Mul(x, x) ─ ReduceMean ─ Add eps ─ Sqrt ─┐
    #           └──────────────────────────────────── Div ──┴─ Mul weight ─ Cast ─▶ fp16
    # Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    def _norm(self, x: str, weight: str, path: str) -> str:
        g = self._g
        scale = g.constant(weight, self._w.vector(weight).astype(np.float32))
        self._progress(weight)
        square = g.node("Mul", [x, x], f"{path}/square/Mul")
        mean = g.node("ReduceMean", [square, self._int64("axis.last", [-1])], f"{path}/ReduceMean", keepdims=1)
        mean = g.node("Add", [mean, self._float32("eps", self._d.rms_norm_eps)], f"{path}/Add")
        normed = g.node("Div", [x, g.node("Sqrt", [mean], f"{path}/Sqrt")], f"{path}/Div")
        normed = g.node("Mul", [normed, scale], f"{path}/Mul")
        return g.node("Cast", [normed], f"{path}/Cast", to=self._type)

    #  q ─ heads ─ RoPE ─ Mul 1/√d ─ [kv_heads, group·sequence, d] ─┬─ MatMul past_keyᵀ ─┐
    #  k ─ heads ─ RoPE ─▶ present.key ─ᵀ───────────────── MatMul ──┘                    │
    #                                                        └─────────── Concat ────────┘
    #  Concat ─ Cast fp32 ─ + mask ─ Softmax ─ Cast fp16 ─┬─ Slice past ─ MatMul past_value ─┐
    #                                                     └─ Slice new ── MatMul value ─ Add ┴▶ o_proj
    #  v ─ heads ─▶ present.value
    #
    # The query heads that share a key/value head become rows of one matrix: no copy of K or V is ever repeated, and
    # past and new are multiplied apart, so none is concatenated either.
    def _attention(self, layer: Layer, x: str, shared: _Shared, path: str) -> str:
        g, d = self._g, self._d
        past_key, past_value = (f"past_key_values.{layer.index}.{part}" for part in ("key", "value"))
        query = self._heads(self._linear(x, layer.q, f"{path}/q_proj"), d.num_heads, f"{path}/q_proj")
        query = self._rope(query, shared, f"{path}/q_rotary")
        query = g.node("Mul", [query, self._scalar("attn.scale", d.head_dim**-0.5)], f"{path}/scale/Mul")
        rows = self._int64("shape.rows", [0, d.num_kv_heads, -1, d.head_dim])
        query = g.node("Reshape", [query, rows], f"{path}/q_rows/Reshape")
        key = self._heads(self._linear(x, layer.k, f"{path}/k_proj"), d.num_kv_heads, f"{path}/k_proj")
        key = self._rope(key, shared, f"{path}/k_rotary", output=f"present.{layer.index}.key")
        value = self._linear(x, layer.v, f"{path}/v_proj")
        value = self._heads(value, d.num_kv_heads, f"{path}/v_proj", output=f"present.{layer.index}.value")

        scores = []
        for part, keys in (("past", past_key), ("new", key)):
            turned = g.node("Transpose", [keys], f"{path}/{part}_key/Transpose", perm=[0, 1, 3, 2])
            scores.append(g.node("MatMul", [query, turned], f"{path}/{part}_scores/MatMul"))
        joined = g.node("Concat", scores, f"{path}/scores/Concat", axis=-1)
        joined = g.node("Cast", [joined], f"{path}/scores/Cast", to=_F32)
        joined = g.node("Reshape", [joined, shared.grouped], f"{path}/scores/Reshape")
        joined = g.node("Add", [joined, shared.mask], f"{path}/mask/Add")
        weights = g.node("Softmax", [joined], f"{path}/Softmax", axis=-1)
        weights = g.node("Cast", [weights], f"{path}/weights/Cast", to=self._type)
        weights = g.node("Reshape", [weights, shared.flat], f"{path}/weights/Reshape")

        zero, end, axis = self._int64("index.0", [0]), self._int64("end", [2**31 - 1]), self._int64("index.3", [3])
        mixed = []
        for part, start, stop, values in (
            ("past", zero, shared.past, past_value),
            ("new", shared.past, end, value),
        ):
            span = g.node("Slice", [weights, start, stop, axis], f"{path}/{part}_weights/Slice")
            mixed.append(g.node("MatMul", [span, values], f"{path}/{part}_values/MatMul"))
        out = g.node("Add", mixed, f"{path}/values/Add")
        out = g.node(
            "Reshape", [out, self._int64("shape.heads", [0, d.num_heads, -1, d.head_dim])], f"{path}/out/Reshape"
        )
        out = g.node("Transpose", [out], f"{path}/out/Transpose", perm=[0, 2, 1, 3])
        return g.node("Reshape", [out, self._int64("shape.joined", [0, 0, -1])], f"{path}/joined/Reshape")

    def _heads(self, x: str, heads: int, path: str, output: str | None = None) -> str:
        shape = self._int64(f"shape.{heads}_heads", [0, 0, heads, self._d.head_dim])
        x = self._g.node("Reshape", [x, shape], f"{path}/heads/Reshape")
        return self._g.node("Transpose", [x], f"{path}/heads/Transpose", output=output, perm=[0, 2, 1, 3])

    # x ─ Split ─┬─ a ─┬ · cos ─ Sub ─┐
    #            │     └ · sin ─ Add ─┼─ Concat ─▶        (a cos - b sin, b cos + a sin)
    #            └─ b ──────────┘     │
    def _rope(self, x: str, shared: _Shared, path: str, output: str | None = None) -> str:
        g = self._g
        a, b = g.nodes("Split", [x], f"{path}/Split", [f"{path}/a", f"{path}/b"], axis=-1, num_outputs=2)

        def times(value: str, angle: str, name: str) -> str:
            return g.node("Mul", [value, angle], f"{path}/{name}/Mul")

        first = g.node("Sub", [times(a, shared.cos, "a_cos"), times(b, shared.sin, "b_sin")], f"{path}/Sub")
        second = g.node("Add", [times(b, shared.cos, "b_cos"), times(a, shared.sin, "a_sin")], f"{path}/Add")
        return g.node("Concat", [first, second], f"{path}/Concat", output=output, axis=-1)

    # x ─┬─ gate_proj ─┬─ Sigmoid ─ Mul ─ Mul ─ down_proj ─▶
    #    │             └─────────────┘     │
    #    └─ up_proj ───────────────────────┘
    def _mlp(self, layer: Layer, x: str, path: str) -> str:
        g = self._g
        gate = self._linear(x, layer.gate, f"{path}/gate_proj")
        up = self._linear(x, layer.up, f"{path}/up_proj")
        gate = g.node("Mul", [gate, g.node("Sigmoid", [gate], f"{path}/act/Sigmoid")], f"{path}/act/Mul")
        return self._linear(g.node("Mul", [gate, up], f"{path}/Mul"), layer.down, f"{path}/down_proj")

    # weight (INT4 [in, out]) ─ DequantizeLinear(axis=0, block_size) ─┐
    # x ─┬──────────────────────────────────────────────────── MatMul ┴─ (Add) ─ (Add bias) ─▶
    #    └─ (sums of x over each group) ─ (MatMul offsets [groups, out]) ─┘
    #
    # TensorRT's INT4 has no offset: what a grid has of it (GGUF Q4_1, AWQ) is added apart, see OffsetTerms. An 8-bit
    # matrix is two INT4 planes, the high and the low halves of its codes.
    def _linear(self, x: str, linear: Linear, path: str) -> str:
        stored = self._store(self._w.matrix(linear), linear.weight)
        self._progress(linear.weight)
        out = self._apply(x, stored, path)
        if linear.bias:
            bias = self._g.constant(linear.bias_name, self._cast(self._w.vector(linear.bias_name)))
            self._progress(linear.bias_name)
            out = self._g.node("Add", [out, bias], f"{path}/Add")
        return out

    def _store(self, matrix: GroupedTensor | npt.NDArray[np.float32], name: str) -> _Stored:
        g = self._g
        if not isinstance(matrix, GroupedTensor):
            return _Stored(g.constant(name, self._cast(matrix).T))
        stored = []
        planes, centre = int4_planes(matrix)
        columns, inner = matrix.shape
        for plane, label in zip(planes, ("", "low_"), strict=False):
            parts = int4_columns(plane.codes)
            weight = g.stream(f"{name}.{label}qweight", TensorProto.INT4, (inner, columns), parts)
            # TensorRT 10.3's parser refuses a scale that is not positive. Zero (often one too small for FP16)
            # becomes the smallest positive number, which moves no weight by more than 5e-7.
            positive = np.maximum(self._cast(plane.scales), self._np(2.0**-24))
            stored.append((label, weight, g.constant(f"{name}.{label}scales", positive.T)))
        offsets = None if centre is None else g.constant(f"{name}.offsets", self._cast(centre).T)
        return _Stored(None, tuple(stored), offsets, matrix.scales.shape[1], matrix.group_size)

    def _apply(self, x: str, stored: _Stored, path: str) -> str:
        g = self._g
        if stored.weight is not None:
            return g.node("MatMul", [x, stored.weight], f"{path}/MatMul")
        terms = []
        for label, weight, scales in stored.planes:
            whole = f"{path}/{label}DequantizeLinear"
            whole = g.node("DequantizeLinear", [weight, scales], whole, axis=0, block_size=stored.size)
            terms.append(g.node("MatMul", [x, whole], f"{path}/{label}MatMul"))
        if stored.offsets is not None:
            terms.append(self._offsets.term(x, stored.offsets, stored.groups, stored.size, path))
        total = terms[0]
        for i, term in enumerate(terms[1:]):
            total = g.node("Add", [total, term], f"{path}/sum{i}/Add")
        return total

    def _cast(self, values: npt.NDArray[np.float32]) -> Half:
        with np.errstate(over="ignore"):
            cast: Half = values.astype(self._np)
        if self._np is np.float16 and not bool(np.isfinite(cast).all()):
            raise ExportError(
                "a weight or a scale is too large for FP16", hint="export for a target that computes in FP32"
            )
        return cast

    def _int64(self, name: str, values: list[int]) -> str:
        return self._g.constant(name, np.array(values, np.int64))

    def _float32(self, name: str, value: float) -> str:
        return self._g.constant(name, np.array(value, np.float32))

    def _scalar(self, name: str, value: float) -> str:
        return self._g.constant(name, np.array(value, self._np))
