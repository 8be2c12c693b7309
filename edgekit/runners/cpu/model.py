"""What a model is to kernels of our own: matrices, norms and layers. It knows no file and computes nothing.

The arrays are the data file's own bytes, mapped into memory and read-only; nothing of them is copied, but for what is
smaller than a page.
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
    """A quantized matrix: `w = scale * (code - zero_point) + rest`, per group along the inputs.

    Attributes:
        name: As the artifact calls it.
        codes: `[out, groups, group_size * bits / 8]`, of two 4-bit codes the first in the low nibble.
        scales: `[out, groups]`.
        zero_points: 8 bits: `[out, groups]`. 4 bits: two in a byte along the groups, `[out, ceil(groups / 2)]`.
            None where all are the middle, 8 or 128.
        rest: What is added to that, `[out, groups]`: it may be the transpose of an array `[groups, out]`. None
            where it is nothing.
        bits: 4 or 8.
        group_size: Inputs that share a scale.
        shape: `(out, in)`.
        bias: `[out]`.
    """

    name: str
    codes: Bytes
    scales: FloatArray
    zero_points: Bytes | None
    rest: FloatArray | None
    bits: int
    group_size: int
    shape: tuple[int, int]
    bias: FloatArray | None = None

    def offsets(self) -> FloatArray:
        """Return `[out, groups]` so that `w = scale * code + offset`; computed anew each time."""
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
        if self.rest is not None:
            offsets += self.rest
        return offsets


@dataclass(frozen=True, slots=True)
class LayerDescription:
    """One decoder layer.

    Attributes:
        input_norm: `[hidden]`, with what an architecture adds to its norms already in it.
        mlp_norm: `[hidden]`.
        attention_out_norm: `[hidden]`, of what attention gives, before it is added; None where there is none.
        mlp_out_norm: `[hidden]`, likewise of the MLP.
        q_norm: `[head_dim]`, of each head of the queries.
        k_norm: `[head_dim]`.
        qkv: One joined matrix, or three.
        o: Output of attention.
        gate_up: One joined matrix, gate first, or two.
        down: Output of the MLP.
        rope: Index into `ModelDescription.ropes`.
        window: Tokens that one looks back over; -1 where it sees all before it.
        scale: Of attention scores.
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
    """A whole model.

    Attributes:
        vocab_size: Rows of the token table.
        hidden: Width of the residual stream.
        intermediate: Width of the MLP.
        heads: Of the queries.
        kv_heads: Of keys and values.
        head_dim: Width of each.
        rms_norm_eps: Of all norms.
        activation: Of the gate.
        embedding: The token table, `[vocab, hidden]`.
        embedding_scale: What its rows are multiplied by; None: nothing.
        layers: In order.
        final_norm: `[hidden]`.
        head: `[vocab, hidden]`; `embedding` itself where the bytes are the same.
        ropes: Cosines and sines `[positions, head_dim / 2]`: element i of a head turns with i + head_dim / 2.
        positions: Rows of these tables.
        context_length: Tokens that the model was exported for.
        metadata: Of the graph.
        let_go: Gives back the memory of what was read of the data file's arrays; they can be read again.
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
    let_go: Callable[[], None]

    def matrices(self) -> list[Matrix]:
        """All of them, each once."""
        tables = [self.embedding] if self.head is self.embedding else [self.embedding, self.head]
        for layer in self.layers:
            tables += [*layer.qkv, layer.o, *layer.gate_up, layer.down]
        return tables
