"""Whether the onnxruntime that is installed reads graphs for JetPack 7; on Python 3.10 there is none that does."""

from __future__ import annotations

from importlib.metadata import version

import pytest

__all__ = ["RUNS_NATIVE", "native_runs"]

RUNS_NATIVE = tuple(int(part) for part in version("onnxruntime").split(".")[:2]) >= (1, 24)
native_runs = pytest.mark.skipif(not RUNS_NATIVE, reason="onnxruntime before 1.24 reads no graph of opset 24")
