"""Writes a model as ONNX in one of the dialects: its files and metadata."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgekit import __version__
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.writers.base import Artifact, Progress, Weights
from edgekit.export.writers.hf_config import hf_config
from edgekit.export.writers.onnx import batched, genai, ort
from edgekit.export.writers.onnx.graph import DATA_FILE, MODEL_FILE, Graph
from edgekit.export.writers.onnx.native import Native
from edgekit.export.writers.onnx.portable import Portable
from edgekit.export.writers.onnx.tensorrt import TensorRtDialect

__all__ = ["OnnxWriter"]

_TENSORRT: dict[str, type[TensorRtDialect]] = {"portable": Portable, "native": Native}
# Version 10 is the first with INT4 and the last that TensorRT 10.3 supports; opset 24 requires a later one.
_IR_VERSIONS = {"portable": 10, "onnxruntime": 10, "native": 12}


@dataclass(frozen=True, slots=True)
class OnnxWriter:
    """Writes `model.onnx` and `model.onnx.data`, and for the CPU further graphs over the same data.

    Attributes:
        dialect: `portable` (primitive operators, for any TensorRT), `native` (one operator for each part of a
            layer, for TensorRT 10.15 and later) or `onnxruntime` (its fused operators, for the CPU).
        dtype: Compute dtype of the TensorRT dialects; float32 is for parity tests. `onnxruntime` always computes in
            float32.
        accuracy_level: Attribute of the `onnxruntime` dialect's matrix products: 4 rounds activations to 8 bits per
            block, 1 computes in float32 and is slow.
    """

    dialect: Literal["portable", "native", "onnxruntime"]
    dtype: Literal["float16", "float32"] = "float16"
    accuracy_level: Literal[1, 4] = 4

    def __call__(self, decoder: Decoder, weights: Weights, folder: Path, progress: Progress) -> Artifact:
        """Write the artifact into `folder`.

        Raises:
            ExportError: The dialect does not support a tensor's grid.
        """
        compute_dtype = "float32" if self.dialect == "onnxruntime" else self.dtype
        dialect = _TENSORRT.get(self.dialect)
        opsets = ort.OPSETS if dialect is None else dialect.opsets
        files = [MODEL_FILE, DATA_FILE]
        with Graph(folder, opsets, ir_version=_IR_VERSIONS[self.dialect]) as graph:
            metadata = {"edgekit.dialect": self.dialect, "edgekit.context_length": str(decoder.max_position)}
            if dialect is None:
                metadata |= ort.OnnxRuntime(graph, decoder, weights, progress, self.accuracy_level).write()
            else:
                dtype = np.float16 if self.dtype == "float16" else np.float32
                metadata |= dialect(graph, decoder, weights, progress, dtype).write()
            graph.save(metadata, producer_version=__version__)
            if dialect is None:
                with batched.with_query_seqlens(graph):
                    graph.save(
                        {**metadata, **batched.METADATA}, producer_version=__version__, file=batched.BATCHED_FILE
                    )
                genai.with_attention_mask(graph, decoder)
                metadata["edgekit.dialect"] = genai.DIALECT
                graph.save(metadata, producer_version=__version__, file=genai.GENAI_FILE)
                files[1:1] = [batched.BATCHED_FILE, genai.GENAI_FILE]
        hashes = {DATA_FILE: graph.data_sha256}
        return Artifact(files=tuple(files), config=hf_config(decoder, compute_dtype), sha256=hashes)
