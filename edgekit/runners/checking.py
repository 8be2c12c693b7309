"""What the runners of TensorRT's dialects share: they run on the CPU, slowly, to check a Jetson's bundle.

Masks are inputs of these graphs. It knows no cache layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgekit.runners.masks import Masks
from edgekit.runners.onnxruntime import OnnxRuntimeRunner

__all__ = ["CheckingRunner"]


class CheckingRunner(OnnxRuntimeRunner):
    """Opens a graph whose masks are inputs; arguments as for `OnnxRuntimeRunner`. Its subclasses run it."""

    # onnxruntime turns DequantizeLinear and MatMul into its own operator; 1 keeps it from rounding activations.
    _entries: ClassVar[Mapping[str, str]] = {"session.qdq_matmulnbits_accuracy_level": "1"}

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        inputs = [value.name for value in self._session.get_inputs()]
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._masks = Masks.of_graph(inputs, metadata, self._cache[0].dtype)
