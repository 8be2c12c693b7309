"""A decoder in float32 numpy, written for clarity: the oracle that every artifact is compared with.

It reads the same `Decoder` description as the writers, and has no KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Decoder, Layer, Linear, Rope

__all__ = ["forward"]

FloatArray = npt.NDArray[np.float32]
Tensor = Callable[[str], FloatArray]
Positions = int | npt.NDArray[np.int64]


def forward(decoder: Decoder, tensor: Tensor, tokens: Sequence[int], first: Positions = 0) -> FloatArray:
    """Run `tokens` through the model with causal attention.

    Args:
        decoder: The model's description.
        tensor: Returns a float32 tensor by its Hugging Face name; called once per use.
        tokens: Token ids.
        first: Position of the first token; or an array of offsets to add to each token's index, for positions with
            gaps.

    Returns:
        Logits, float32 `[len(tokens), vocab]`.
    """
    x = tensor(decoder.embedding.weight)[np.asarray(tokens)].astype(np.float32)
    x = x * np.float32(decoder.embedding_scale or 1)
    for layer in decoder.layers:
        h = _attention(decoder, layer, tensor, _rms_norm(decoder, tensor, x, layer.input_norm), first)
        x = x + _rms_norm(decoder, tensor, h, layer.attention_out_norm)
        h = _mlp(decoder, layer, tensor, _rms_norm(decoder, tensor, x, layer.mlp_norm))
        x = x + _rms_norm(decoder, tensor, h, layer.mlp_out_norm)
    x = _rms_norm(decoder, tensor, x, decoder.final_norm)
    head = decoder.embedding if decoder.tied else decoder.head
    return _linear(head, tensor, x)


def _linear(linear: Linear, tensor: Tensor, x: FloatArray) -> FloatArray:
    """Apply a linear layer; a part of a fused matrix is sliced out of it."""
    y: FloatArray = x @ tensor(linear.stored.weight)[linear.rows].T
    return y + tensor(linear.stored.bias_name)[linear.rows] if linear.bias else y


def _rms_norm(decoder: Decoder, tensor: Tensor, x: FloatArray, name: str | None) -> FloatArray:
    """A norm over the last axis; the identity if `name` is None."""
    if name is None:
        return x
    mean_square = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    weight = tensor(name) + np.float32(decoder.norm_offset)
    normed: FloatArray = x / np.sqrt(mean_square + np.float32(decoder.rms_norm_eps)) * weight
    return normed


def _mlp(decoder: Decoder, layer: Layer, tensor: Tensor, x: FloatArray) -> FloatArray:
    gate = _linear(layer.gate, tensor, x)
    if decoder.activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:
        inner = np.float32(np.sqrt(2 / np.pi)) * (gate + np.float32(0.044715) * gate**3)
        gate = np.float32(0.5) * gate * (1 + np.tanh(inner))
    return _linear(layer.down, tensor, gate * _linear(layer.up, tensor, x))


def _rope(rope: Rope, x: FloatArray, first: Positions) -> FloatArray:
    """Rotate `[n, heads, dim]` by position: element i pairs with element i + rope.dim/2; the rest passes through."""
    half = rope.dim // 2
    angles = (first + np.arange(x.shape[0], dtype=np.float64))[:, None, None] * np.array(rope.frequencies)
    cos = (np.cos(angles) * rope.attention_factor).astype(np.float32)
    sin = (np.sin(angles) * rope.attention_factor).astype(np.float32)
    low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1)


def _attention(decoder: Decoder, layer: Layer, tensor: Tensor, x: FloatArray, first: Positions) -> FloatArray:
    n, dim = x.shape[0], decoder.head_dim
    q = _linear(layer.q, tensor, x).reshape(n, decoder.num_heads, dim)
    k = _linear(layer.k, tensor, x).reshape(n, decoder.num_kv_heads, dim)
    v = _linear(layer.v, tensor, x).reshape(n, decoder.num_kv_heads, dim)
    q = _rope(layer.rope, _rms_norm(decoder, tensor, q, layer.q_norm), first)
    k = _rope(layer.rope, _rms_norm(decoder, tensor, k, layer.k_norm), first)
    group = decoder.num_heads // decoder.num_kv_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) * np.float32(decoder.attention_scale)
    mask = np.tri(n, dtype=bool)
    if layer.window is not None:
        mask &= ~np.tri(n, k=-layer.window, dtype=bool)
    scores = np.where(mask, scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = np.einsum("hqk,khd->qhd", scores, v).reshape(n, -1).astype(np.float32)
    return _linear(layer.o, tensor, mixed)
