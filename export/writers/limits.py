"""Refuses models that a target's artifact cannot represent, from the model's description alone."""

from __future__ import annotations

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.writers.mlx_limits import check_mlx_support
from edgekit.target import Target

__all__ = ["check_onnxruntime_support", "check_support", "check_tensorrt_support"]


def check_support(decoder: Decoder, target: Target) -> None:
    """Refuse a model that the writer of a target's artifact would refuse.

    Raises:
        ExportError: Code `unsupported_configuration`.
    """
    if target.artifact == "mlx":
        check_mlx_support(decoder)
    elif target.dialect == "onnxruntime":
        check_onnxruntime_support(decoder)
    else:
        check_tensorrt_support(decoder)


def check_onnxruntime_support(decoder: Decoder) -> None:
    """Refuse a model that onnxruntime's fused operators cannot compute.

    Raises:
        ExportError: Code `unsupported_configuration`.
    """
    if decoder.head_dim % 16:
        raise ExportError(
            f"onnxruntime's RoPE needs a head size that is a multiple of 16; this model's is {decoder.head_dim}",
            hint="export for another target",
            code="unsupported_configuration",
        )


def check_tensorrt_support(decoder: Decoder) -> None:
    """Refuse a model that needs more masks than a TensorRT graph has inputs for.

    Raises:
        ExportError: Code `unsupported_configuration`.
    """
    windows = {layer.window for layer in decoder.layers if layer.window is not None}
    windows = {window for window in windows if window < decoder.max_position}
    if len(windows) > 1:
        raise ExportError(
            f"layers have sliding windows of {', '.join(map(str, sorted(windows)))} tokens; "
            "a TensorRT graph supports one window size",
            code="unsupported_configuration",
        )
