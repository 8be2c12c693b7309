"""Writes graphs of large models' exact shapes, with random quantized weights and without a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Linear
from edgekit.export.quantization.grid import GroupedTensor
from edgekit.export.sources.catalog import find_entry
from edgekit.export.writers.onnx import OnnxWriter

__all__ = ["write_large_graph"]

_GROUP = 128
_COMMON = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "bos_token_id": 256,
    "eos_token_id": 257,
}


@dataclass(frozen=True)
class _RandomWeights:
    """Weights of four bits as a writer reads them. Drawing each of the billions would take longer than writing them."""

    shapes: dict[str, tuple[int, ...]]
    order: Sequence[Linear] = ()
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        return self.rng.normal(1.0, 0.1, self.shapes[name]).astype(np.float32)

    def matrix(self, linear: Linear) -> GroupedTensor:
        out, width = linear.out_features, linear.in_features
        # Not a multiple of a row's length, so that rows differ.
        codes = np.resize(self.rng.integers(0, 16, (1 << 22) + 1, np.uint8), (out, width))
        scales = self.rng.uniform(0.5e-3, 2e-3, (out, width // _GROUP)).astype(np.float32)
        return GroupedTensor(codes, scales, -8 * scales, 4)

    def table(self, linear: Linear) -> GroupedTensor:
        return self.matrix(linear)


def write_large_graph(name: str, folder: Path) -> Path:
    """Write the `portable` graph of a model of the catalogue, all matrices in 4 bits, and return its folder.

    Args:
        name: Of a `qwen2` model whose shape the catalogue knows.
        folder: Created.
    """
    entry = find_entry(name)
    assert entry is not None
    decoder = describe({**_COMMON, **entry.shape})
    folder.mkdir(parents=True)
    OnnxWriter("portable")(decoder, _RandomWeights(dict(decoder.tensor_shapes())), folder, lambda _: None)
    return folder
