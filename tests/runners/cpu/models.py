"""Random `ModelDescription`s of any shape, without a checkpoint or a file.

Weights are in the range of real ones. Some shapes are never exported: the kernels support more than today's graphs use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.runners.cpu.model import LayerDescription, Matrix, ModelDescription, Plane

__all__ = ["Offsets", "Shape", "random_model"]

FloatArray = npt.NDArray[np.float32]
Offsets = Literal["symmetric", "zero-point", "float"]


@dataclass(frozen=True)
class Shape:
    """Shape of a random model; the fields are those of `ModelDescription`, or:

    Attributes:
        bits: Bits of all matrices.
        group_size: Group size of all matrices; widths need not be multiples.
        offsets: Offsets of all matrices.
        fused: Queries, keys and values in one matrix, gate and up in one.
        mixed: If not fused, the second matrix has 8 bits and four times the group size, the third twice the group size,
            as for checkpoints with several tensor types.
        biases: All matrices but the head have biases.
        head_norms: Queries and keys are normed.
        post_norms: The outputs of attention and MLP are normed.
        window: Sliding window of every second layer.
        tied: The head is the embedding.
        factor: Scales and offsets of matrices that read a norm's output are multiplied by this; the norm compensates.
        by_columns: Matrices are stored as in TensorRT's dialects, which have no zero points and only full groups.
        rotary_dim: Elements of a head that are rotated; 0: all.
    """

    vocab_size: int = 96
    hidden: int = 64
    intermediate: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    layers: int = 2
    positions: int = 160
    activation: Literal["silu", "gelu_tanh"] = "silu"
    embedding_scale: float | None = None
    bits: int = 4
    group_size: int = 32
    offsets: Offsets = "zero-point"
    fused: bool = True
    mixed: bool = False
    biases: bool = False
    head_norms: bool = False
    post_norms: bool = False
    window: int = -1
    tied: bool = False
    factor: float = 1.0
    by_columns: bool = False
    rotary_dim: int = 0


class _Generator:
    def __init__(self, shape: Shape, seed: int) -> None:
        self._shape = shape
        self._rng = np.random.default_rng(seed)

    def matrix(self, name: str, out: int, width: int, *, bias: bool = False, factor: float = 1.0) -> Matrix:
        """A matrix whose weights have the variance factor² / width."""
        shape, rng = self._shape, self._rng
        if shape.mixed and (index := int(name.rpartition(".")[2]) if name[-1].isdigit() else 0):
            shape = replace(shape, bits=8, group_size=shape.group_size * (4 if index == 1 else 2))
        groups = -(-width // shape.group_size)
        middle = 1 << (shape.bits - 1)
        spread = factor / (0.58 * middle * np.sqrt(width))
        if shape.by_columns:
            return self.columns(name, out, width, spread, shape, bias=bias)
        points: npt.NDArray[np.uint8] | None = None
        if shape.offsets != "symmetric":
            points = rng.integers(middle - middle // 4, middle + middle // 4, (out, groups)).astype(np.uint8)
            if shape.bits == 4:
                low, high = np.pad(points, ((0, 0), (0, groups % 2))).reshape(out, -1, 2).transpose(2, 0, 1)
                points = (low | high << 4).astype(np.uint8)
        float_offsets: FloatArray | None = None
        if shape.offsets == "float":
            # Transposed, as in a graph.
            float_offsets = (spread * rng.uniform(-1, 1, (groups, out))).astype(np.float32).T
        return Matrix(
            name=name,
            codes=rng.integers(0, 256, (out, groups, shape.group_size * shape.bits // 8), dtype=np.uint8),
            scales=(spread * rng.uniform(0.7, 1.3, (out, groups)) * rng.choice([-1, 1], (out, groups))).astype("f"),
            zero_points=points,
            float_offsets=float_offsets,
            bits=shape.bits,
            group_size=shape.group_size,
            shape=(out, width),
            bias=rng.normal(0, 0.3, out).astype(np.float32) if bias else None,
        )

    def columns(self, name: str, out: int, width: int, spread: float, shape: Shape, *, bias: bool) -> Matrix:
        """A matrix by columns."""
        rng, groups = self._rng, width // shape.group_size
        assert width % shape.group_size == 0
        size = -(-out * width // 2)
        scales = (spread * rng.uniform(0.7, 1.3, (groups, out))).astype(np.float16)
        offsets: npt.NDArray[np.float16] | None = None
        if shape.offsets == "float":
            offsets = (spread * rng.uniform(-1, 1, (groups, out))).astype(np.float16)
        elif shape.bits == 8:
            # The planes' middle is 8 * 16 + 8, not 128.
            offsets = 8 * scales
        low = Plane(rng.integers(0, 256, size, dtype=np.uint8), scales.T) if shape.bits == 8 else None
        return Matrix(
            name=name,
            codes=rng.integers(0, 256, size, dtype=np.uint8),
            scales=(scales if low is None else 16 * scales).T,
            zero_points=None,
            float_offsets=None if offsets is None else offsets.T,
            bits=shape.bits,
            group_size=shape.group_size,
            shape=(out, width),
            bias=rng.normal(0, 0.3, out).astype(np.float32) if bias else None,
            by_columns=True,
            low=low,
        )

    def norm(self, width: int, size: float = 1.0) -> FloatArray:
        weights: FloatArray = (size * self._rng.normal(1, 0.1, width)).astype(np.float32)
        return weights

    def layer(self, index: int) -> LayerDescription:
        """A layer; every second one has a sliding window and other RoPE tables."""
        s = self._shape
        queries, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim

        def projection(name: str, out: int) -> Matrix:
            return self.matrix(name, out, s.hidden, bias=s.biases, factor=s.factor)

        def matrices(name: str, *outs: int) -> tuple[Matrix, ...]:
            sizes = (sum(outs),) if s.fused else outs
            return tuple(projection(f"{name}.{at}", out) for at, out in enumerate(sizes))

        return LayerDescription(
            input_norm=self.norm(s.hidden, 1 / s.factor),
            mlp_norm=self.norm(s.hidden, 1 / s.factor),
            attention_out_norm=self.norm(s.hidden) if s.post_norms else None,
            mlp_out_norm=self.norm(s.hidden) if s.post_norms else None,
            q_norm=self.norm(s.head_dim) if s.head_norms else None,
            k_norm=self.norm(s.head_dim) if s.head_norms else None,
            qkv=matrices(f"{index}.qkv", queries, keys, keys),
            o=self.matrix(f"{index}.o", s.hidden, queries, bias=s.biases),
            gate_up=matrices(f"{index}.gate_up", s.intermediate, s.intermediate),
            down=self.matrix(f"{index}.down", s.hidden, s.intermediate, bias=s.biases),
            rope=index % 2,
            window=-1 if index % 2 else s.window,
            scale=float(1 / np.sqrt(s.head_dim)),
        )

    def rope(self, base: float) -> tuple[FloatArray, FloatArray]:
        half = (self._shape.rotary_dim or self._shape.head_dim) // 2
        angles = np.outer(np.arange(self._shape.positions + 1), base ** -(np.arange(half) / half))
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def random_model(shape: Shape | None = None, seed: int = 0, **fields: Any) -> ModelDescription:
    """Describe a random model; `fields` override those of `shape`."""
    s = replace(shape or Shape(), **fields)
    generator = _Generator(s, seed)
    # Rows of the embedding have a variance of 1 / hidden.
    scale = float(np.sqrt(s.hidden)) if s.embedding_scale is None else s.embedding_scale
    embedding = generator.matrix("embed", s.vocab_size, s.hidden, factor=s.factor)
    return ModelDescription(
        vocab_size=s.vocab_size,
        hidden=s.hidden,
        intermediate=s.intermediate,
        heads=s.heads,
        kv_heads=s.kv_heads,
        head_dim=s.head_dim,
        rms_norm_eps=1e-5,
        activation=s.activation,
        embedding=embedding,
        embedding_scale=scale / s.factor,
        layers=tuple(generator.layer(index) for index in range(s.layers)),
        final_norm=generator.norm(s.hidden, 1 / s.factor),
        head=embedding if s.tied else generator.matrix("head", s.vocab_size, s.hidden, factor=s.factor),
        ropes=(generator.rope(10_000.0), generator.rope(50_000.0)),
        positions=s.positions + 1,
        context_length=s.positions,
        metadata={},
        release_pages=lambda: None,
    )
