"""The forward pass of one short prompt, from quantized matrices: a layer at a time, in float32.

A matrix is dequantized two rows at a time, in the processor's cache, so a prompt of some 20 tokens takes little more
than reading the codes. `stream.py` is for many tokens and needs a layer's matrices in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgekit.cores import count_cores
from edgekit.export.architectures.decoder import Decoder, Layer, Rope
from edgekit.export.forward.stream import causal_mask
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["FewTokens", "Matrix", "QuantizedRows"]

FloatArray = npt.NDArray[np.float32]


class QuantizedRows(Protocol):
    """A quantized matrix that is read some rows at a time, such as a `GroupedTensor`."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""

    def rows(self, start: int, stop: int) -> GroupedTensor:
        """The rows `start:stop`."""


Matrix = QuantizedRows | FloatArray

# Weights multiplied by one thread at a time.
_SPAN = 1 << 21
# The kernel takes this many tokens at a time.
_TOKENS = 3


class FewTokens:
    """Computes layers, and products with matrices. Use it as a context manager: leaving it ends its threads.

    Args:
        decoder: The model.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._d = decoder
        self._threads = ThreadPoolExecutor(count_cores().usable_cpus, thread_name_prefix="self-test")

    def __enter__(self) -> FewTokens:  # noqa: PYI034  `Self` needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def layer(
        self, layer: Layer, matrices: Mapping[str, Matrix], vectors: Mapping[str, FloatArray], hidden: FloatArray
    ) -> FloatArray:
        """Run tokens through one layer.

        Args:
            layer: A layer of the decoder.
            matrices: By the names of its `Linear`s.
            vectors: Its norms by name, its biases by `Linear.bias_name`.
            hidden: Hidden states before it, float32 `[tokens, hidden]`.

        Returns:
            Hidden states after it.
        """
        d = self._d

        def linear(part: str, x: FloatArray) -> FloatArray:
            described = getattr(layer, part)
            y = self.multiply(matrices[described.name], x)
            return y + vectors[described.bias_name] if described.bias else y

        def norm(x: FloatArray, name: str | None) -> FloatArray:
            return x if name is None else self.norm(x, vectors[name])

        x = norm(hidden, layer.input_norm)
        query = norm(linear("q", x).reshape(len(x), d.num_heads, d.head_dim), layer.q_norm)
        key = norm(linear("k", x).reshape(len(x), d.num_kv_heads, d.head_dim), layer.k_norm)
        value = linear("v", x).reshape(len(x), d.num_kv_heads, d.head_dim)
        attended = self._attend(_rotate(layer.rope, query), _rotate(layer.rope, key), value, layer.window)
        hidden = hidden + norm(linear("o", attended), layer.attention_out_norm)
        x = norm(hidden, layer.mlp_norm)
        inner = self._activate(linear("gate", x)) * linear("up", x)
        result: FloatArray = hidden + norm(linear("down", inner), layer.mlp_out_norm)
        return result

    def norm(self, x: FloatArray, weight: FloatArray) -> FloatArray:
        """RMSNorm over the last axis; `weight` is as stored, without the norm offset."""
        mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
        scale = weight.astype(np.float32) + np.float32(self._d.norm_offset)
        normed: FloatArray = x / np.sqrt(mean_square + np.float32(self._d.rms_norm_eps)) * scale
        return normed

    def multiply(self, matrix: Matrix, x: FloatArray) -> FloatArray:
        """Multiply tokens, float32 `[tokens, in]`, by a matrix `[out, in]`."""
        if isinstance(matrix, np.ndarray):
            product: FloatArray = x @ matrix.T
            return product
        from edgekit.export.quantization.kernels import multiply_rows

        tokens, (rows, width) = len(x), matrix.shape
        padded = np.zeros((-(-tokens // _TOKENS) * _TOKENS, width), np.float32)
        padded[:tokens] = x
        out = np.empty((rows + rows % 2, len(padded)), np.float32)

        def work(start: int) -> None:
            stop = min(start + step, rows)
            part = matrix.rows(start, stop)
            if (stop - start) % 2:
                part = _with_last_twice(part)
            multiply_rows(
                np.ascontiguousarray(part.codes),
                np.ascontiguousarray(part.scales, np.float32),
                np.ascontiguousarray(part.offsets, np.float32),
                padded,
                np.empty((2, width), np.float32),
                out[start : start + part.shape[0]],
            )

        step = max(2, _SPAN // width // 2 * 2)
        # Iterating raises the errors of the threads here.
        for _ in self._threads.map(work, range(0, rows, step)):
            pass
        return np.ascontiguousarray(out[:rows, :tokens].T)

    def _attend(self, query: FloatArray, key: FloatArray, value: FloatArray, window: int | None) -> FloatArray:
        d, tokens = self._d, len(query)
        grouped = query.reshape(tokens, d.num_kv_heads, -1, d.head_dim) * np.float32(d.attention_scale)
        scores = np.einsum("tkgd,skd->kgts", grouped, key, optimize=True) + causal_mask(tokens, window)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed: FloatArray = np.einsum("kgts,skd->tkgd", weights, value, optimize=True).astype(np.float32, copy=False)
        return mixed.reshape(tokens, d.num_heads * d.head_dim)

    def _activate(self, gate: FloatArray) -> FloatArray:
        activated: FloatArray
        if self._d.activation == "silu":
            # tanh does not overflow where exp would.
            activated = gate * np.float32(0.5) * (1 + np.tanh(gate * np.float32(0.5)))
        else:
            inner = np.float32(np.sqrt(2 / np.pi)) * (gate + np.float32(0.044715) * gate**3)
            activated = gate * np.float32(0.5) * (1 + np.tanh(inner))
        return activated


def _rotate(rope: Rope, x: FloatArray) -> FloatArray:
    """Apply RoPE to `[tokens, heads, head_dim]`, the first token at position 0."""
    half = rope.dim // 2
    angles = np.arange(len(x), dtype=np.float64)[:, None, None] * np.array(rope.frequencies)
    cos, sin = ((part(angles) * rope.attention_factor).astype(np.float32) for part in (np.cos, np.sin))
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def _with_last_twice(part: GroupedTensor) -> GroupedTensor:
    """The kernel takes an even number of rows."""
    rows = np.append(np.arange(part.shape[0]), part.shape[0] - 1)
    return GroupedTensor(part.codes[rows], part.scales[rows], part.offsets[rows], part.bits)
