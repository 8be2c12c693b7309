"""A decoder in float32 numpy, written for clarity: the oracle that every artifact is compared with.

It reads the same `Decoder` description as the writers and no KV cache; it knows no file format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Decoder, Layer, Linear

__all__ = ["forward"]

FloatArray = npt.NDArray[np.float32]
Tensor = Callable[[str], FloatArray]


def forward(decoder: Decoder, tensor: Tensor, tokens: Sequence[int]) -> FloatArray:
    """Run `tokens` through the model with full causal attention.

    Args:
        decoder: What the model looks like.
        tensor: Returns a float32 tensor by its Hugging Face name; asked once per use.
        tokens: Token ids, positions from 0.

    Returns:
        Logits, float32 `[len(tokens), vocab]`.
    """
    x = tensor(decoder.embedding.weight)[np.asarray(tokens)].astype(np.float32)
    for layer in decoder.layers:
        h = _rms_norm(x, tensor(layer.input_norm), decoder.rms_norm_eps)
        x = x + _attention(decoder, layer, tensor, h)
        h = _rms_norm(x, tensor(layer.post_norm), decoder.rms_norm_eps)
        gate = _linear(layer.gate, tensor, h)
        x = x + _linear(layer.down, tensor, gate / (1 + np.exp(-gate)) * _linear(layer.up, tensor, h))
    x = _rms_norm(x, tensor(decoder.final_norm), decoder.rms_norm_eps)
    head = decoder.embedding if decoder.tied else decoder.head
    return _linear(head, tensor, x)


def _linear(linear: Linear, tensor: Tensor, x: FloatArray) -> FloatArray:
    y: FloatArray = x @ tensor(linear.weight).T
    return y + tensor(linear.bias_name) if linear.bias else y


def _rms_norm(x: FloatArray, weight: FloatArray, eps: float) -> FloatArray:
    mean_square = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    normed: FloatArray = x / np.sqrt(mean_square + np.float32(eps)) * weight
    return normed


def _rope(decoder: Decoder, x: FloatArray) -> FloatArray:
    """Rotate `[n, heads, dim]` by its position: element i pairs with element i + dim/2."""
    half = decoder.rope.dim // 2
    frequencies = decoder.rope.theta ** (-np.arange(half, dtype=np.float64) / half)
    angles = np.arange(x.shape[0], dtype=np.float64)[:, None, None] * frequencies
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    low, high = x[..., :half], x[..., half:]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def _attention(decoder: Decoder, layer: Layer, tensor: Tensor, x: FloatArray) -> FloatArray:
    n, dim = x.shape[0], decoder.head_dim
    q = _rope(decoder, _linear(layer.q, tensor, x).reshape(n, decoder.num_heads, dim))
    k = _rope(decoder, _linear(layer.k, tensor, x).reshape(n, decoder.num_kv_heads, dim))
    v = _linear(layer.v, tensor, x).reshape(n, decoder.num_kv_heads, dim)
    share = decoder.num_heads // decoder.num_kv_heads
    k, v = np.repeat(k, share, axis=1), np.repeat(v, share, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(np.float32(dim))
    scores = np.where(np.tri(n, dtype=bool), scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = np.einsum("hqk,khd->qhd", scores, v).reshape(n, -1).astype(np.float32)
    return _linear(layer.o, tensor, mixed)
