"""Describes a model to the CPU kernels: matrices, norms and layers.

The arrays are read-only views of the memory-mapped data file. Only arrays smaller than a page are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["LayerDescription", "Matrix", "ModelDescription"]

Bytes = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A quantized matrix: `w = scale * (code - zero_point) + float_offset`, per group along the inputs.

    Attributes:
        name: Its name in the artifact.
        codes: `[out, groups, group_size * bits / 8]`, of two 4-bit codes the first in the low nibble.
        scales: `[out, groups]`.
        zero_points: 8 bits: `[out, groups]`. 4 bits: two per byte along the groups, `[out, ceil(groups / 2)]`.
            None if all are the middle, 8 or 128.
        float_offsets: `[out, groups]`, perhaps a transposed view of an array `[groups, out]`. None if all are zero.
        bits: 4 or 8.
        group_size: Inputs that share a scale.
        shape: `(out, in)`.
        bias: `[out]`.
    """

    name: str
    codes: Bytes
    scales: FloatArray
    zero_points: Bytes | None
    float_offsets: FloatArray | None
    bits: int
    group_size: int
    shape: tuple[int, int]
    bias: FloatArray | None = None

    def offsets(self) -> FloatArray:
        """Compute `[out, groups]` such that `w = scale * code + offset`."""
        groups = self.scales.shape[1]
        offsets: FloatArray
        if self.zero_points is None:
            offsets = self.scales * np.float32(-(1 << (self.bits - 1)))
        elif self.bits == 8:
            offsets = self.scales * -self.zero_points.astype(np.float32)
        else:
            points = np.stack([self.zero_points & 15, self.zero_points >> 4], axis=-1)
            points = points.reshape(len(points), -1)[:, :groups]
            offsets = self.scales * -points.astype(np.float32)
        if self.float_offsets is not None:
            offsets += self.float_offsets
        return offsets


@dataclass(frozen=True, slots=True)
class LayerDescription:
    """One decoder layer.

    Attributes:
        input_norm: `[hidden]`; includes the constant that some architectures add to norm weights.
        mlp_norm: `[hidden]`.
        attention_out_norm: `[hidden]`, applied to the attention output before the residual addition, or None.
        mlp_out_norm: `[hidden]`, applied to the MLP output likewise, or None.
        q_norm: `[head_dim]`, applied to each query head, or None.
        k_norm: `[head_dim]`, applied to each key head, or None.
        qkv: One fused matrix, or three.
        o: Output projection of attention.
        gate_up: One fused matrix, gate first, or two.
        down: Output projection of the MLP.
        rope: Index into `ModelDescription.ropes`.
        window: Size of the sliding window, the token itself included; -1 for full attention.
        scale: Factor of attention scores.
    """

    input_norm: FloatArray
    mlp_norm: FloatArray
    attention_out_norm: FloatArray | None
    mlp_out_norm: FloatArray | None
    q_norm: FloatArray | None
    k_norm: FloatArray | None
    qkv: tuple[Matrix, ...]
    o: Matrix
    gate_up: tuple[Matrix, ...]
    down: Matrix
    rope: int
    window: int
    scale: float


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A full model.

    Attributes:
        vocab_size: Rows of the embedding.
        hidden: Width of the residual stream.
        intermediate: Width of the MLP.
        heads: Number of query heads.
        kv_heads: Number of KV heads.
        head_dim: Width of a head.
        rms_norm_eps: Epsilon of all norms.
        activation: Activation of the MLP's gate.
        embedding: The token embedding, `[vocab, hidden]`.
        embedding_scale: Factor of its rows, or None.
        layers: First to last.
        final_norm: `[hidden]`.
        head: The LM head, `[vocab, hidden]`; the same object as `embedding` if they share their bytes.
        ropes: Cosines and sines `[positions, head_dim / 2]`: element i of a head is rotated with i + head_dim / 2.
        positions: Rows of these tables.
        context_length: Context length that the model was exported for, tokens.
        metadata: The graph's metadata.
        release_pages: Drops the pages of the mapped data file from memory; they are read again on the next access.
    """

    vocab_size: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float
    activation: Literal["silu", "gelu_tanh"]
    embedding: Matrix
    embedding_scale: float | None
    layers: tuple[LayerDescription, ...]
    final_norm: FloatArray
    head: Matrix
    ropes: tuple[tuple[FloatArray, FloatArray], ...]
    positions: int
    context_length: int
    metadata: Mapping[str, str]
    release_pages: Callable[[], None]

    def matrices(self) -> list[Matrix]:
        """All matrices, a tied head only once."""
        found = [self.embedding] if self.head is self.embedding else [self.embedding, self.head]
        for layer in self.layers:
            found += [*layer.qkv, layer.o, *layer.gate_up, layer.down]
        return found
