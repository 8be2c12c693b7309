"""Artifact readers, one file per kind of artifact: what a bundle's codes stand for, as `Tensors`.

They are the writers' counterpart and read what is on the disk, not what was meant to be: an artifact's error is that
of its weights as they are stored, its scales rounded and all. They run nothing.
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
        IncompatibleBundleError: There is no reader for this kind of artifact.
        ExportError: The artifact is damaged.
    """
    kind, dialect = bundle.manifest.artifact.kind, bundle.manifest.artifact.dialect
    if kind == "mlx":
        from edgekit.export.artifacts.mlx import MlxTensors

        return MlxTensors(bundle.path)
    if kind == "onnx" and dialect == "onnxruntime":
        from edgekit.export.artifacts.onnxruntime import OnnxRuntimeTensors

        return OnnxRuntimeTensors(bundle.path, decoder)
    if kind == "onnx" and dialect in {"portable", "native"}:
        from edgekit.export.artifacts.tensorrt import TensorRtTensors

        return TensorRtTensors(bundle.path, decoder)
    raise IncompatibleBundleError(f"edgekit cannot read the weights of an artifact `{f'{kind} {dialect}'.strip()}`")
