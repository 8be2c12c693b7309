"""A float32 forward pass, one layer at a time, for calibration and evaluation.

`tensors.py` provides the weights, `layer_graph.py` builds one layer as an ONNX graph, `stream.py` runs hidden states
through a model layer by layer, `kl.py` compares logits.
"""

from __future__ import annotations

from edgekit.export.forward.stream import LayerRunner, causal_mask
from edgekit.export.forward.tensors import CheckpointTensors, Tensors

__all__ = ["CheckpointTensors", "LayerRunner", "Tensors", "causal_mask"]
