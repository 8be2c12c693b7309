"""Describes a model to the CPU kernels: matrices, norms and layers.

The arrays are read-only views of the memory-mapped data file. Only arrays smaller than a page are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.runners.cpu.onnx_reader.matcher import Unsupported

__all__ = ["LayerDescription", "Matrix", "ModelDescription", "Plane", "belong_together"]

_SMALLEST_HALF = np.float32(2.0**-24)

Bytes = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
Factors = npt.NDArray[np.float32] | npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Plane:
    """The low nibbles of a matrix whose 8-bit codes are stored as two INT4 tensors.

    Attributes:
        codes: As `Matrix.codes`.
        scales: `[out, groups]`: a sixteenth of the matrix's, but for the rounding of float16.
    """

    codes: Bytes
    scales: Factors


@dataclass(frozen=True, slots=True)
class Matrix:
    """A quantized matrix: `w = scale * (code - zero_point) + float_offset`, per group along the inputs.

    With `low`, `w = scale * (high - 8) + low.scale * (low - 8) + float_offset`.

    Scales and offsets may be float16, and transposed views of arrays `[groups, out]`.

    Attributes:
        name: Its name in the artifact.
        codes: By rows: `[out, groups, group_size * bits / 8]`, of two 4-bit codes the first in the low nibble.
            By columns: the bytes of an ONNX INT4 tensor `[in, out]`, which holds `code - 8`.
        scales: `[out, groups]`.
        zero_points: 8 bits: `[out, groups]`. 4 bits: two per byte along the groups, `[out, ceil(groups / 2)]`.
            None if all are the middle, 8 or 128.
        float_offsets: `[out, groups]`. None if all are zero.
        bits: 4 or 8.
        group_size: Inputs that share a scale.
        shape: `(out, in)`.
        bias: `[out]`.
        by_columns: How the codes are stored.
        low: Of 8 bits by columns, the low nibbles; `codes` and `scales` are then those of the high nibbles.
    """

    name: str
    codes: Bytes
    scales: Factors
    zero_points: Bytes | None
    float_offsets: Factors | None
    bits: int
    group_size: int
    shape: tuple[int, int]
    bias: FloatArray | None = None
    by_columns: bool = False
    low: Plane | None = None

    @property
    def may_have_offsets(self) -> bool:
        """Whether `factors` may return offsets."""
        return self.low is not None or self.zero_points is not None or self.float_offsets is not None

    def factors(self, rows: slice = slice(None)) -> tuple[FloatArray, FloatArray | None]:
        """Compute scales and offsets `[out, groups]` such that `w = scale * code + offset`.

        Args:
            rows: The rows of the matrix to compute them for.

        Returns:
            Both in float32; no offsets if all zero points are the middle, 8 or 128.

        Raises:
            Unsupported: The scales of the high and of the low nibbles do not belong together.
        """
        scales = np.ascontiguousarray(self.scales[rows], np.float32)
        if not self.may_have_offsets:
            return scales, None
        offsets: FloatArray
        if self.low is not None:
            high, low = scales, self.low.scales[rows].astype(np.float32)
            scales = high / np.float32(16)
            if not belong_together(high, low):
                raise Unsupported(f"`{self.name[:80]}` has scales of high and low nibbles that do not belong together")
            offsets = np.float32(-8) * (high + scales)
        elif self.zero_points is None:
            offsets = scales * np.float32(-(1 << (self.bits - 1)))
        elif self.bits == 8:
            offsets = scales * -self.zero_points[rows].astype(np.float32)
        else:
            stored = self.zero_points[rows]
            points = np.stack([stored & 15, stored >> 4], axis=-1)
            points = points.reshape(len(points), -1)[:, : scales.shape[1]]
            offsets = scales * -points.astype(np.float32)
        if self.float_offsets is not None:
            offsets += self.float_offsets[rows]
        if self.low is not None and (offsets == np.float32(-128) * scales).all():
            return scales, None
        return scales, offsets


def belong_together(high: Factors, low: Factors) -> bool:
    """Whether the scales of high nibbles are 16 times those of the low ones.

    They may differ by the smallest float16 number, where float16 has few bits left or zero was replaced by it.
    """
    difference = high.astype(np.float32) / np.float32(16) - low.astype(np.float32)
    return bool((np.abs(difference) <= _SMALLEST_HALF).all())


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
        ropes: Cosines and sines `[positions, dim / 2]`, perhaps float16: element i of a head is rotated with
            i + dim / 2. Elements from `dim` on are not rotated.
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
    ropes: tuple[tuple[Factors, Factors], ...]
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
