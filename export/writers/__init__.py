"""Artifact writers, one file per backend. They take a `Decoder` and its weights."""

from __future__ import annotations

from edgekit.export.writers.base import Writer
from edgekit.target import Target

__all__ = ["writer_for"]


def writer_for(target: Target) -> Writer:
    """Return the writer of a target's artifact."""
    if target.artifact == "mlx":
        from edgekit.export.writers.mlx import MlxWriter

        return MlxWriter()
    from edgekit.export.writers.onnx import OnnxWriter

    return OnnxWriter(target.dialect or "portable")
