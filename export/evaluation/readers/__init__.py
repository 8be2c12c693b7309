"""Artifact readers, one file per kind of artifact: they dequantize a bundle's weights as `Tensors`.

They are the counterpart of the writers and read the stored bytes, so a measured error includes the rounding of scales.
"""

from __future__ import annotations

from edgekit.bundle.bundle import Bundle
from edgekit.errors import IncompatibleBundleError
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.forward.tensors import Tensors

__all__ = ["open_artifact"]


def open_artifact(bundle: Bundle, decoder: Decoder) -> Tensors:
    """Open a bundle's artifact for reading its weights.

    Args:
        bundle: The bundle.
        decoder: The model in it.

    Raises:
        IncompatibleBundleError: edgekit has no reader for this kind of artifact.
        ExportError: The artifact is damaged.
    """
    kind, dialect = bundle.manifest.artifact.kind, bundle.manifest.artifact.dialect
    if kind == "mlx":
        from edgekit.export.evaluation.readers.mlx import MlxTensors

        return MlxTensors(bundle.path)
    if kind == "onnx" and dialect == "onnxruntime":
        from edgekit.export.evaluation.readers.onnxruntime import OnnxRuntimeTensors

        return OnnxRuntimeTensors(bundle.path, decoder)
    if kind == "onnx" and dialect in {"portable", "native"}:
        from edgekit.export.evaluation.readers.tensorrt import TensorRtTensors

        return TensorRtTensors(bundle.path, decoder)
    raise IncompatibleBundleError(f"edgekit cannot read the weights of an artifact `{f'{kind} {dialect}'.strip()}`")
