"""The ONNX writer; one file per dialect."""

from __future__ import annotations

from edgekit.export.writers.onnx.writer import OnnxWriter

__all__ = ["OnnxWriter"]
