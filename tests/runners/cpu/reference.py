"""A forward pass in numpy over a `ModelDescription`: what the kernels compute, in float32 and without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgekit.runners.cpu.description import LayerDescription, Matrix, ModelDescription

__all__ = ["dequantized", "forward"]

FloatArray = npt.NDArray[np.float32]


def dequantized(matrix: Matrix) -> FloatArray:
    """The float32 matrix `[out, in]`."""
    codes = np.asarray(matrix.codes)
    if matrix.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    values = codes.astype(np.float32) * matrix.scales[:, :, None] + matrix.offsets()[:, :, None]
    return values.reshape(matrix.shape)


def forward(model: ModelDescription, tokens: Sequence[int]) -> FloatArray:
    """Logits `[tokens, vocab]`."""
    x = dequantized(model.embedding)[np.array(tokens)]
    if model.embedding_scale is not None:
        x = x * np.float32(model.embedding_scale)
    for layer in model.layers:
        branch = _linear(layer.o, _attention(model, layer, _norm(model, x, layer.input_norm)))
        x = x + (branch if layer.attention_out_norm is None else _norm(model, branch, layer.attention_out_norm))
        branch = _mlp(model, layer, _norm(model, x, layer.mlp_norm))
        x = x + (branch if layer.mlp_out_norm is None else _norm(model, branch, layer.mlp_out_norm))
    return _linear(model.head, _norm(model, x, model.final_norm))


def _attention(model: ModelDescription, layer: LayerDescription, x: FloatArray) -> FloatArray:
    count, dim, groups = len(x), model.head_dim, model.heads // model.kv_heads
    joined = np.concatenate([_linear(matrix, x) for matrix in layer.qkv], axis=-1).reshape(count, -1, dim)
    q, k, v = np.split(joined, [model.heads, model.heads + model.kv_heads], axis=1)
    if layer.q_norm is not None:
        q = _norm(model, q, layer.q_norm)
    if layer.k_norm is not None:
        k = _norm(model, k, layer.k_norm)
    cos, sin = (table[:count, None] for table in model.ropes[layer.rope])
    q, k = (_turn(part, cos, sin) for part in (q, k))
    k, v = (np.repeat(part, groups, axis=1) for part in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) * np.float32(layer.scale)
    behind = np.arange(count)[:, None] - np.arange(count)
    seen = (behind >= 0) & ((layer.window < 0) | (behind < layer.window))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed: FloatArray = np.einsum("hqk,khd->qhd", weights, v).reshape(count, -1).astype(np.float32)
    return mixed


def _turn(x: FloatArray, cos: FloatArray, sin: FloatArray) -> FloatArray:
    one, other = np.split(x, 2, axis=-1)
    return np.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)


def _mlp(model: ModelDescription, layer: LayerDescription, x: FloatArray) -> FloatArray:
    joined = np.concatenate([_linear(matrix, x) for matrix in layer.gate_up], axis=-1)
    gate, up = np.split(joined, 2, axis=-1)
    if model.activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:
        gate = gate * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return _linear(layer.down, (gate * up).astype(np.float32))


def _norm(model: ModelDescription, x: FloatArray, weight: FloatArray) -> FloatArray:
    normed: FloatArray = x / np.sqrt((x**2).mean(-1, keepdims=True) + np.float32(model.rms_norm_eps)) * weight
    return normed


def _linear(matrix: Matrix, x: FloatArray) -> FloatArray:
    out: FloatArray = x @ dequantized(matrix).T
    return out if matrix.bias is None else out + matrix.bias
