"""A straightforward numpy implementation of the kernels' forward pass over a `ModelDescription`.

`forward` is in float32 without quantized activations. `rounded_forward` is in float64 and rounds what the kernels
round, so that it differs from them only by float32 noise, except where that noise flips a rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgekit.runners.cpu.onnx_reader.match_model import LayerDescription, Matrix, ModelDescription

__all__ = ["Pass", "dequantized", "forward", "rounded_forward"]

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[np.floating]
_Float = TypeVar("_Float", np.float32, np.float64)
Linear = Callable[[Matrix, Array], Array]

# The range of normal float16 numbers.
_FLOAT16_MIN, _FLOAT16_MAX = 2.0**-14, 65504.0


@dataclass(frozen=True)
class Pass:
    """The results of `rounded_forward`.

    Attributes:
        logits: `[tokens, vocab]`.
        cache: Keys and values before they are rounded to float16, `[2 * layers, kv_heads, tokens, head_dim]`; the keys
            of a layer come first.
    """

    logits: npt.NDArray[np.float64]
    cache: npt.NDArray[np.float64]


def dequantized(matrix: Matrix) -> FloatArray:
    """The float32 matrix `[out, in]`."""
    scales, offsets = matrix.factors()
    offsets = scales * np.float32(-(1 << (matrix.bits - 1))) if offsets is None else offsets
    return _flat(matrix, _codes(matrix) * scales[:, :, None] + offsets[:, :, None])


def forward(model: ModelDescription, tokens: Sequence[int]) -> FloatArray:
    """Logits `[tokens, vocab]`."""
    rows = dequantized(model.embedding)[np.array(tokens)]

    def linear(matrix: Matrix, x: Array) -> Array:
        return _biased(matrix, x @ dequantized(matrix).T)

    return _forward(model, rows, linear, None)[0].astype(np.float32)


def rounded_forward(model: ModelDescription, tokens: Sequence[int], cache: npt.NDArray[np.float16]) -> Pass:
    """Run tokens, with attention over the keys and values that the kernels computed.

    So a flipped rounding changes one row, and not every row that attends to it.

    Args:
        model: The model.
        tokens: The tokens of a sequence, from its start.
        cache: The kernels' keys and values, in the layout of `Pass.cache`.
    """

    def linear(matrix: Matrix, x: Array) -> Array:
        # Not with BLAS: on busy cores its threads wait longer for one another than these few sums take.
        return _biased(matrix, np.einsum("ri,oi->ro", _rounded(matrix, x), _stored(matrix)))

    rows = _stored(model.embedding)[np.array(tokens)]
    return Pass(*_forward(model, rows, linear, cache.astype(np.float64)))


def _forward(
    model: ModelDescription, x: Array, linear: Linear, stored_cache: npt.NDArray[np.float64] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    computed: list[Array] = []
    if model.embedding_scale is not None:
        x = x * np.float32(model.embedding_scale)
    for index, layer in enumerate(model.layers):
        stored = None if stored_cache is None else stored_cache[2 * index : 2 * index + 2]
        mixed, cache = _attention(model, layer, _norm(model, x, layer.input_norm), linear, stored)
        computed += cache
        branch = linear(layer.o, mixed)
        x = x + (branch if layer.attention_out_norm is None else _norm(model, branch, layer.attention_out_norm))
        branch = _mlp(model, layer, _norm(model, x, layer.mlp_norm), linear)
        x = x + (branch if layer.mlp_out_norm is None else _norm(model, branch, layer.mlp_out_norm))
    return linear(model.head, _norm(model, x, model.final_norm)).astype(np.float64), np.stack(computed).astype(
        np.float64
    )


def _attention(
    model: ModelDescription, layer: LayerDescription, x: Array, linear: Linear, stored_cache: Array | None
) -> tuple[Array, list[Array]]:
    count, dim, groups = len(x), model.head_dim, model.heads // model.kv_heads
    qkv = np.concatenate([linear(matrix, x) for matrix in layer.qkv], axis=-1).reshape(count, -1, dim)
    q, k, v = np.split(qkv, [model.heads, model.heads + model.kv_heads], axis=1)
    if layer.q_norm is not None:
        q = _norm(model, q, layer.q_norm)
    if layer.k_norm is not None:
        k = _norm(model, k, layer.k_norm)
    cos, sin = (table[:count, None].astype(np.float32) for table in model.ropes[layer.rope])
    q, k = (_rope(part, cos, sin) for part in (q, k))
    computed = [part.swapaxes(0, 1) for part in (k, v)]
    k, v = (np.repeat(part, groups, axis=0) for part in (computed if stored_cache is None else stored_cache))
    scores = np.einsum("qhd,hkd->hqk", q, k) * np.float32(layer.scale)
    distance = np.arange(count)[:, None] - np.arange(count)
    visible = (distance >= 0) & ((layer.window < 0) | (distance < layer.window))
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed: Array = np.einsum("hqk,hkd->qhd", weights, v).reshape(count, -1).astype(x.dtype)
    return mixed, computed


def _rope(x: Array, cos: Array, sin: Array) -> Array:
    half = cos.shape[-1]
    a, b, rest = np.split(x, [half, 2 * half], axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def _mlp(model: ModelDescription, layer: LayerDescription, x: Array, linear: Linear) -> Array:
    joined = np.concatenate([linear(matrix, x) for matrix in layer.gate_up], axis=-1)
    gate, up = np.split(joined, 2, axis=-1)
    if model.activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:
        gate = gate * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return linear(layer.down, (gate * up).astype(x.dtype))


def _norm(model: ModelDescription, x: Array, weight: FloatArray) -> Array:
    normed: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + np.float32(model.rms_norm_eps)) * weight
    return normed


def _codes(matrix: Matrix) -> FloatArray:
    """`[out, groups, group_size]`."""
    codes = np.asarray(matrix.codes)
    if matrix.by_columns:
        out, width = matrix.shape
        planes = [matrix.codes] if matrix.low is None else [matrix.low.codes, matrix.codes]
        codes = np.zeros((width, out), np.uint8)
        for at, plane in enumerate(planes):
            nibbles = np.stack([plane & 15, plane >> 4], axis=-1).reshape(-1)[: out * width].reshape(width, out)
            codes |= (nibbles ^ 8) << np.uint8(4 * at)
        codes = codes.T.reshape(out, -1, matrix.group_size)
    elif matrix.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    return codes.astype(np.float32)


def _flat(matrix: Matrix, values: npt.NDArray[_Float]) -> npt.NDArray[_Float]:
    """`[out, in]`, without the padding of the last group."""
    return values.reshape(len(values), -1)[:, : matrix.shape[1]]


def _biased(matrix: Matrix, x: Array) -> Array:
    return x if matrix.bias is None else x + matrix.bias


def _stored(matrix: Matrix) -> npt.NDArray[np.float64]:
    """The matrix `[out, in]` with scales and offsets rounded to float16, unless one of them would lose bits."""
    scales, found = matrix.factors()
    offsets = np.zeros_like(scales) if found is None else found
    if all(np.all((a == 0) | ((a >= _FLOAT16_MIN) & (a <= _FLOAT16_MAX))) for a in map(np.abs, (scales, offsets))):
        scales, offsets = (part.astype(np.float16).astype(np.float32) for part in (scales, offsets))
    codes = _codes(matrix).astype(np.float64) - (1 << (matrix.bits - 1) if found is None else 0)
    return _flat(matrix, codes * scales[:, :, None] + offsets[:, :, None])


def _rounded(matrix: Matrix, x: Array) -> npt.NDArray[np.float64]:
    """The activations that a matrix reads, quantized to 8 bits in its groups."""
    count, width = x.shape
    groups = matrix.scales.shape[1]
    padded = np.zeros((count, groups * matrix.group_size), np.float32)
    padded[:, :width] = x
    parts = padded.reshape(count, groups, -1)
    largest = np.abs(parts).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    codes = np.rint(parts * inverse)
    values: npt.NDArray[np.float64] = codes.astype(np.float64) * (largest / np.float32(127))
    return values.reshape(count, -1)[:, :width]
