"""A forward pass in numpy over a `ModelDescription`: what the kernels compute, without any of their tricks.

`forward` is in float32 and rounds nothing. `rounded_forward` is in float64, and rounds what the kernels round: so what
they differ in is float32 noise, except where that noise tips a number over to the other side of a rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgekit.runners.cpu.description import LayerDescription, Matrix, ModelDescription

__all__ = ["Pass", "dequantized", "forward", "rounded_forward"]

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[np.floating]
_Float = TypeVar("_Float", np.float32, np.float64)
Linear = Callable[[Matrix, Array], Array]

# Half a step of float16 up to here, relatively; below, its steps are as wide as at the least of these.
_LEAST_HALF, _MOST_HALF = 2.0**-14, 65504.0


@dataclass(frozen=True)
class Pass:
    """What `rounded_forward` gives.

    Attributes:
        logits: `[tokens, vocab]`.
        cache: Keys and values before they are rounded to float16, `[2 * layers, kv_heads, tokens, head_dim]`, keys
            of a layer first.
    """

    logits: npt.NDArray[np.float64]
    cache: npt.NDArray[np.float64]


def dequantized(matrix: Matrix) -> FloatArray:
    """The float32 matrix `[out, in]`."""
    values = _codes(matrix) * matrix.scales[:, :, None] + matrix.offsets()[:, :, None]
    return _flat(matrix, values)


def forward(model: ModelDescription, tokens: Sequence[int]) -> FloatArray:
    """Logits `[tokens, vocab]`."""
    rows = dequantized(model.embedding)[np.array(tokens)]

    def linear(matrix: Matrix, x: Array) -> Array:
        return _biased(matrix, x @ dequantized(matrix).T)

    return _forward(model, rows, linear, None)[0].astype(np.float32)


def rounded_forward(model: ModelDescription, tokens: Sequence[int], cache: npt.NDArray[np.float16]) -> Pass:
    """Run tokens over the keys and values that the kernels made of them, those of the tokens themselves included.

    So a number that falls on the other side of a rounding changes one row, and not all that look back at it.

    Args:
        model: What to run.
        tokens: From the start of a sequence.
        cache: As in `Pass`.
    """

    def linear(matrix: Matrix, x: Array) -> Array:
        # Not by BLAS, whose threads, on cores that are busy, wait longer for one another than these few sums take.
        return _biased(matrix, np.einsum("ri,oi->ro", _rounded(matrix, x), _stored(matrix)))

    rows = _stored(model.embedding)[np.array(tokens)]
    return Pass(*_forward(model, rows, linear, cache.astype(np.float64)))


def _forward(
    model: ModelDescription, x: Array, linear: Linear, given: npt.NDArray[np.float64] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    made: list[Array] = []
    if model.embedding_scale is not None:
        x = x * np.float32(model.embedding_scale)
    for index, layer in enumerate(model.layers):
        kept = None if given is None else given[2 * index : 2 * index + 2]
        mixed, cache = _attention(model, layer, _norm(model, x, layer.input_norm), linear, kept)
        made += cache
        branch = linear(layer.o, mixed)
        x = x + (branch if layer.attention_out_norm is None else _norm(model, branch, layer.attention_out_norm))
        branch = _mlp(model, layer, _norm(model, x, layer.mlp_norm), linear)
        x = x + (branch if layer.mlp_out_norm is None else _norm(model, branch, layer.mlp_out_norm))
    return linear(model.head, _norm(model, x, model.final_norm)).astype(np.float64), np.stack(made).astype(np.float64)


def _attention(
    model: ModelDescription, layer: LayerDescription, x: Array, linear: Linear, given: Array | None
) -> tuple[Array, list[Array]]:
    count, dim, groups = len(x), model.head_dim, model.heads // model.kv_heads
    joined = np.concatenate([linear(matrix, x) for matrix in layer.qkv], axis=-1).reshape(count, -1, dim)
    q, k, v = np.split(joined, [model.heads, model.heads + model.kv_heads], axis=1)
    if layer.q_norm is not None:
        q = _norm(model, q, layer.q_norm)
    if layer.k_norm is not None:
        k = _norm(model, k, layer.k_norm)
    cos, sin = (table[:count, None] for table in model.ropes[layer.rope])
    q, k = (_turn(part, cos, sin) for part in (q, k))
    made = [part.swapaxes(0, 1) for part in (k, v)]
    k, v = (np.repeat(part, groups, axis=0) for part in (made if given is None else given))
    scores = np.einsum("qhd,hkd->hqk", q, k) * np.float32(layer.scale)
    behind = np.arange(count)[:, None] - np.arange(count)
    seen = (behind >= 0) & ((layer.window < 0) | (behind < layer.window))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed: Array = np.einsum("hqk,hkd->qhd", weights, v).reshape(count, -1).astype(x.dtype)
    return mixed, made


def _turn(x: Array, cos: Array, sin: Array) -> Array:
    one, other = np.split(x, 2, axis=-1)
    return np.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)


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
    if matrix.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    return codes.astype(np.float32)


def _flat(matrix: Matrix, values: npt.NDArray[_Float]) -> npt.NDArray[_Float]:
    """`[out, in]`, without what fills the last group up."""
    return values.reshape(len(values), -1)[:, : matrix.shape[1]]


def _biased(matrix: Matrix, x: Array) -> Array:
    return x if matrix.bias is None else x + matrix.bias


def _stored(matrix: Matrix) -> npt.NDArray[np.float64]:
    """The matrix `[out, in]` whose factors are float16, unless one of them would lose bits by that."""
    scales = matrix.scales
    own = matrix.zero_points is not None or matrix.rest is not None
    offsets = matrix.offsets() if own else np.zeros_like(scales)
    if all(np.all((a == 0) | ((a >= _LEAST_HALF) & (a <= _MOST_HALF))) for a in map(np.abs, (scales, offsets))):
        scales, offsets = (part.astype(np.float16).astype(np.float32) for part in (scales, offsets))
    codes = _codes(matrix).astype(np.float64) - (0 if own else 1 << (matrix.bits - 1))
    return _flat(matrix, codes * scales[:, :, None] + offsets[:, :, None])


def _rounded(matrix: Matrix, x: Array) -> npt.NDArray[np.float64]:
    """Activations that a matrix reads, rounded to 8 bits in its groups."""
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
