"""The `onnxruntime` dialect: onnxruntime's own fused operators, for its CPU provider (1.23 and later).

    input_ids               int64 [batch, sequence]
    seqlens_k               int32 [batch]                  tokens in the cache after this step, minus one
    total_sequence_length   int32 []                       the largest of them, plus one
    logits_index            int64 [rows]                   positions of `sequence` whose logits are wanted
    past_key_values.N.key, .value   fp32 [batch, kv_heads, capacity, head_dim]
        ▼
    logits                  fp32  [batch, rows, vocab]
    present.N.key, .value   fp32 [batch, kv_heads, capacity, head_dim]   bound to the same buffers as past

Weights are 4- or 8-bit `MatMulNBits`; activations and the cache are FP32, which is what this provider computes in.
Matrices that read the same input are joined, because every call costs a fork and a join of the threads.

Source of the operators: onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Decoder, Layer, Linear
from edgekit.export.quantization.grid import GroupedTensor, Offset
from edgekit.export.writers.base import Progress, Weights
from edgekit.export.writers.onnx.graph import Graph
from edgekit.export.writers.onnx.offsets import OffsetTerms
from edgekit.export.writers.onnx.packing import concatenate, nearest_zero_points, nibbles, offset_kind, pack_rows
from edgekit.export.writers.onnx.rope import rope_tables

__all__ = ["OPSETS", "OnnxRuntime"]

_MICROSOFT = "com.microsoft"
OPSETS = {"": 20, _MICROSOFT: 1}

_F32, _U8, _I32, _I64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64

FloatArray = npt.NDArray[np.float32]
Matrix = GroupedTensor | FloatArray


@dataclass(frozen=True, slots=True)
class _Stored:
    """A matrix whose bytes are written already: what of it the graph can name.

    Attributes:
        weight: A float matrix `[in, out]`; None where it is quantized.
        packed: Weights, scales and, unless they are the middle, zero points, as `MatMulNBits` takes them.
        shape: `(out, in)`.
        bits: Bits per code.
        size: Inputs in a group.
        offsets: What the zero points leave of the offsets, `[groups, out]`; None where that is nothing.
    """

    weight: str | None
    packed: tuple[str, ...] = ()
    shape: tuple[int, int] = (0, 0)
    bits: int = 0
    size: int = 0
    offsets: str | None = None


class OnnxRuntime:
    """Writes one model into one graph.

    Args:
        graph: Where to.
        decoder: The model.
        weights: Its numbers.
        progress: Called with the name of each tensor once it is written.
        accuracy_level: Of `MatMulNBits`: 4 rounds activations to 8 bits per block, which is several times faster;
            1 computes in FP32.
    """

    def __init__(
        self, graph: Graph, decoder: Decoder, weights: Weights, progress: Progress, accuracy_level: int = 4
    ) -> None:
        self._g = graph
        self._d = decoder
        self._w = weights
        self._progress = progress
        self._accuracy_level = accuracy_level
        self._offsets = OffsetTerms(graph)

    def write(self) -> None:
        """Write inputs, layers and outputs."""
        g, d = self._g, self._d
        ids = g.input("input_ids", _I64, ("batch", "sequence"))
        g.input("seqlens_k", _I32, ("batch",))
        g.input("total_sequence_length", _I32, ())
        rows = g.input("logits_index", _I64, ("rows",))
        g.output("logits", _F32, ("batch", "rows", d.vocab_size))
        cache = ("batch", d.num_kv_heads, "capacity", d.head_dim)
        for layer in d.layers:
            for part in ("key", "value"):
                g.input(f"past_key_values.{layer.index}.{part}", _F32, cache)
                g.output(f"present.{layer.index}.{part}", _F32, cache)
        for name, values in zip(("cos_cache", "sin_cache"), rope_tables(d.rope, d.max_position), strict=True):
            g.constant(name, values)
        residual, head = self._embed(ids)
        first = d.layers[0]
        normed = g.node(
            "SimplifiedLayerNormalization",
            [residual, self._norm(first.input_norm)],
            "/model/layers.0/input_layernorm/LayerNorm",
            axis=-1,
            epsilon=d.rms_norm_eps,
            stash_type=1,
        )
        for layer in d.layers:
            last = layer is d.layers[-1]
            following = d.final_norm if last else d.layers[layer.index + 1].input_norm
            normed, residual = self._layer(layer, normed, residual, following, rows if last else None)
        if head is None:
            self._linears(normed, [d.head], "/lm_head", output="logits")
        else:
            self._apply(normed, head, "/lm_head", bias=None, output="logits")

    # ids ─ GatherBlockQuantized ─▶ residual
    #
    # A tied head reads the embedding's own bytes: they are stored once, and the table, which is the largest tensor,
    # is forgotten before the layers.
    def _embed(self, ids: str) -> tuple[str, _Stored | None]:
        g, d, name, path = self._g, self._d, self._d.embedding.weight, "/model/embed_tokens"
        table, head = self._w.matrix(d.embedding), None
        if not isinstance(table, GroupedTensor):
            rows = g.node("Gather", [g.constant(name, table), ids], f"{path}/Gather", axis=0)
            if d.tied:
                head = _Stored(g.node("Transpose", [name], "/lm_head/Transpose", perm=[1, 0]))
            self._progress(name)
            return rows, head
        points, rest = self._points(table, name)
        vocab, hidden = table.shape
        packed = g.stream(f"{name}.qweight", _U8, (vocab, hidden * table.bits // 8), pack_rows(table.codes, table.bits))
        scales = g.constant(f"{name}.scales", table.scales)
        rows = g.node(
            "GatherBlockQuantized",
            [packed, ids, scales, *points],
            f"{path}/GatherBlockQuantized",
            domain=_MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            block_size=table.group_size,
            bits=table.bits,
        )
        offsets = None
        if rest is not None:
            rows = self._embed_offsets(rows, ids, rest, table.group_size)
            offsets = f"{name}.offsets"
        if d.tied:
            if offsets is not None:
                offsets = g.node("Transpose", [offsets], "/lm_head/offsets/Transpose", perm=[1, 0])
            shape = (vocab, table.scales.shape[1], table.group_size * table.bits // 8)
            again = g.alias(f"{d.head.weight}.qweight", _U8, shape, packed)
            head = _Stored(None, (again, scales, *points), table.shape, table.bits, table.group_size, offsets)
        self._progress(name)
        return rows, head

    # What the zero point leaves of an offset is added to the gathered rows:
    #
    # ids ─ Gather(offsets) ─ Unsqueeze ─┐
    # rows ─ Reshape [.., groups, size] ─ Add ─ Reshape ─▶
    def _embed_offsets(self, rows: str, ids: str, rest: FloatArray, size: int) -> str:
        g, path = self._g, "/model/embed_tokens/offsets"
        offsets = g.node(
            "Gather", [g.constant(f"{self._d.embedding.weight}.offsets", rest), ids], f"{path}/Gather", axis=0
        )
        offsets = g.node("Unsqueeze", [offsets, self._ints("axis.last", [-1])], f"{path}/Unsqueeze")
        shape = self._ints("shape.embedding_groups", [0, 0, rest.shape[1], size])
        rows = g.node("Add", [g.node("Reshape", [rows, shape], f"{path}/split/Reshape"), offsets], f"{path}/Add")
        return g.node("Reshape", [rows, self._ints("shape.hidden", [0, 0, rest.shape[1] * size])], f"{path}/Reshape")

    # normed ─ qkv_proj ─ GroupQueryAttention ─ o_proj ─ SkipNorm ─ gate_up_proj ─ … ─ down_proj ─ SkipNorm ─▶ normed
    # residual ──────────────────────────────────────────┘    └──────────────────────────────────────┘    └─▶ residual
    #
    # A SkipNorm adds its two inputs and gives the sum and its norm. The last layer drops, after its attention,
    # every position whose logits nobody wants.
    def _layer(self, layer: Layer, normed: str, residual: str, following: str, rows: str | None) -> tuple[str, str]:
        g, path = self._g, f"/model/layers.{layer.index}"
        attended = self._attention(layer, normed, f"{path}/attn")
        if rows is not None:
            attended = g.node("Gather", [attended, rows], f"{path}/attn/rows/Gather", axis=1)
            residual = g.node("Gather", [residual, rows], f"{path}/rows/Gather", axis=1)
        branch = self._linears(attended, [layer.o], f"{path}/attn/o_proj")[0]
        normed, residual = self._skip_norm(branch, residual, layer.mlp_norm, f"{path}/post_attention_layernorm")
        branch = self._mlp(layer, normed, f"{path}/mlp")
        place = "/model/norm" if rows is not None else f"/model/layers.{layer.index + 1}/input_layernorm"
        return self._skip_norm(branch, residual, following, place)

    def _attention(self, layer: Layer, x: str, path: str) -> str:
        g, d = self._g, self._d
        parts = self._linears(x, [layer.q, layer.k, layer.v], path, joined="qkv_proj")
        past = [f"past_key_values.{layer.index}.{part}" for part in ("key", "value")]
        present = [f"present.{layer.index}.{part}" for part in ("key", "value")]
        inputs = [*(parts if len(parts) == 3 else (*parts, "", "")), *past]
        inputs += ["seqlens_k", "total_sequence_length", "cos_cache", "sin_cache"]
        return g.nodes(
            "GroupQueryAttention",
            inputs,
            f"{path}/GroupQueryAttention",
            [f"{path}/GroupQueryAttention/output_0", *present],
            domain=_MICROSOFT,
            num_heads=d.num_heads,
            kv_num_heads=d.num_kv_heads,
            scale=d.head_dim**-0.5,
            do_rotary=1,
            rotary_interleaved=0,
        )[0]

    # x ─ gate_up_proj ─ Split ─┬─ gate ─ QuickGelu(1) ─┐
    #                           └─ up ───────────── Mul ┴─ down_proj ─▶
    # QuickGelu is x · sigmoid(alpha · x); with alpha 1 it is SiLU in one pass.
    def _mlp(self, layer: Layer, x: str, path: str) -> str:
        g = self._g
        parts = self._linears(x, [layer.gate, layer.up], path, joined="gate_up_proj")
        if len(parts) == 1:
            names = [f"{path}/gate", f"{path}/up"]
            parts = list(g.nodes("Split", parts, f"{path}/Split", names, axis=-1, num_outputs=2))
        gate, up = parts
        gate = g.node("QuickGelu", [gate], f"{path}/act_fn/QuickGelu", domain=_MICROSOFT, alpha=1.0)
        return self._linears(g.node("Mul", [gate, up], f"{path}/Mul"), [layer.down], f"{path}/down_proj")[0]

    def _skip_norm(self, branch: str, residual: str, weight: str, path: str) -> tuple[str, str]:
        names = [f"{path}/output_0", f"{path}/residual"]
        self._g.nodes(
            "SkipSimplifiedLayerNormalization",
            [branch, residual, self._norm(weight)],
            f"{path}/SkipLayerNorm",
            [names[0], "", "", names[1]],
            domain=_MICROSOFT,
            epsilon=self._d.rms_norm_eps,
        )
        return names[0], names[1]

    def _norm(self, name: str) -> str:
        weight = self._g.constant(name, self._w.vector(name))
        self._progress(name)
        return weight

    def _linears(
        self, x: str, linears: Sequence[Linear], path: str, *, joined: str = "", output: str | None = None
    ) -> list[str]:
        """Apply matrices that read one input: by one node called `joined` if their grids agree, else one by one."""
        matrices = [self._w.matrix(linear) for linear in linears]
        biases = [self._w.vector(linear.bias_name) if linear.bias else None for linear in linears]
        if len(linears) == 1:
            outputs = [self._matmul(x, matrices[0], linears[0].weight, path, bias=biases[0], output=output)]
        elif (whole := _join(matrices)) is not None:
            bias = None
            if any(part is not None for part in biases):
                bias = np.concatenate(
                    [
                        np.zeros(linear.out_features, np.float32) if part is None else part
                        for linear, part in zip(linears, biases, strict=True)
                    ]
                )
            prefix = linears[0].name.rpartition(".")[0]
            outputs = [self._matmul(x, whole, f"{prefix}.{joined}.weight", f"{path}/{joined}", bias=bias)]
        else:
            outputs = [
                self._matmul(x, matrix, linear.weight, f"{path}/{linear.name.rpartition('.')[2]}", bias=bias)
                for linear, matrix, bias in zip(linears, matrices, biases, strict=True)
            ]
        for linear in linears:
            self._progress(linear.weight)
            if linear.bias:
                self._progress(linear.bias_name)
        return outputs

    # x ─┬─ MatMulNBits (bias within) ────────────────────────────── (Add) ─▶
    #    └─ (sums of x over each group) ─ (MatMul offsets [groups, out]) ─┘
    #
    # A zero point is an integer: what it leaves of an offset (GGUF Q4_1, MLX) is added apart, see OffsetTerms.
    def _matmul(
        self, x: str, matrix: Matrix, name: str, path: str, *, bias: FloatArray | None, output: str | None = None
    ) -> str:
        bias_name = None if bias is None else self._g.constant(f"{name.removesuffix('.weight')}.bias", bias)
        return self._apply(x, self._store(matrix, name), path, bias=bias_name, output=output)

    def _store(self, matrix: Matrix, name: str) -> _Stored:
        g = self._g
        if not isinstance(matrix, GroupedTensor):
            return _Stored(g.constant(name, matrix.T))
        points, rest = self._points(matrix, name)
        shape = (matrix.shape[0], matrix.scales.shape[1], matrix.group_size * matrix.bits // 8)
        packed = g.stream(f"{name}.qweight", _U8, shape, pack_rows(matrix.codes, matrix.bits))
        inputs = (packed, g.constant(f"{name}.scales", matrix.scales), *points)
        offsets = None if rest is None else g.constant(f"{name}.offsets", rest.T)
        return _Stored(None, inputs, matrix.shape, matrix.bits, matrix.group_size, offsets)

    def _apply(self, x: str, stored: _Stored, path: str, *, bias: str | None, output: str | None = None) -> str:
        g = self._g
        if stored.weight is not None:
            product = g.node("MatMul", [x, stored.weight], f"{path}/MatMul", output=None if bias else output)
            return product if bias is None else g.node("Add", [product, bias], f"{path}/Add", output=output)
        inputs = [x, *stored.packed]
        if bias is not None:
            # Inputs 3 and 4 are the zero points and an index of groups.
            inputs += [""] * (5 - len(inputs)) + [bias]
        columns, inner = stored.shape
        product = g.node(
            "MatMulNBits",
            inputs,
            f"{path}/MatMulNBits",
            output=output if stored.offsets is None else None,
            domain=_MICROSOFT,
            K=inner,
            N=columns,
            bits=stored.bits,
            block_size=stored.size,
            accuracy_level=self._accuracy_level,
        )
        if stored.offsets is None:
            return product
        term = self._offsets.term(x, stored.offsets, inner // stored.size, stored.size, path)
        return g.node("Add", [product, term], f"{path}/offsets/Add", output=output)

    def _points(self, tensor: GroupedTensor, name: str) -> tuple[list[str], FloatArray | None]:
        """The zero points as an input (absent where they are the middle, which is the default), and what they leave."""
        size = tensor.group_size
        if tensor.bits not in {4, 8} or size < 16 or size & (size - 1):
            raise ExportError(
                f"`{name}` has {tensor.bits}-bit codes in groups of {size}, which onnxruntime does not take",
                hint="it takes 4 or 8 bits, in groups of 16, 32, 64 or 128",
            )
        kind = offset_kind(tensor)
        if kind is Offset.SYMMETRIC:
            return [], None
        points, rest = nearest_zero_points(tensor)
        rows, groups = points.shape
        if tensor.bits == 4:
            if groups % 2:
                points = np.concatenate([points, np.zeros((rows, 1), np.uint8)], axis=1)
            points = nibbles(points)
        return [self._g.constant(f"{name}.zero_points", points)], rest if kind is Offset.FLOAT else None

    def _ints(self, name: str, values: list[int]) -> str:
        return self._g.constant(name, np.array(values, np.int64))


def _join(matrices: Sequence[Matrix]) -> Matrix | None:
    """Stack matrices along their outputs, if one node can hold them all."""
    if all(isinstance(matrix, np.ndarray) for matrix in matrices):
        return np.concatenate([matrix for matrix in matrices if isinstance(matrix, np.ndarray)])
    grouped = [matrix for matrix in matrices if isinstance(matrix, GroupedTensor)]
    same = len({(matrix.bits, matrix.group_size, offset_kind(matrix)) for matrix in grouped}) == 1
    return concatenate(grouped) if same and len(grouped) == len(matrices) else None
