"""Writes graphs of both TensorRT dialects with tiny weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekit.export.quantization.grid import Grid, Offset
from edgekit.export.quantization.rtn import rtn
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.profile import Dialect
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.variants import variant

__all__ = ["write_graph"]


def write_graph(
    folder: Path,
    name: str = "qwen2",
    *,
    dialect: Dialect = "portable",
    offset: Offset | None = Offset.SYMMETRIC,
    bits: int = 4,
    **options: Any,
) -> Path:
    """Write the graph of a variant, quantized unless `offset` is None, and return its folder."""
    source = variant(name, folder / "hf", **options)
    weights = TensorWeights(
        tiny_tensors(source), lambda _, w: w if offset is None else rtn(w, Grid(bits, 32, offset, np.float16))
    )
    (folder / "onnx").mkdir()
    OnnxWriter(dialect)(tiny_decoder(source), weights, folder / "onnx", lambda _: None)
    return folder / "onnx"
