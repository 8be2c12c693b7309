"""A float32 forward pass that streams over layers: calibration and quality figures are computed with it.

`tensors.py` says where the numbers come from, `layer_graph.py` is one layer as an ONNX graph, `stream.py` runs hidden
states through a model layer by layer. It knows no recipe and no text.
"""

from __future__ import annotations

from edgekit.export.forward.stream import LayerRunner, causal_mask
from edgekit.export.forward.tensors import CheckpointTensors, Tensors

__all__ = ["CheckpointTensors", "LayerRunner", "Tensors", "causal_mask"]
