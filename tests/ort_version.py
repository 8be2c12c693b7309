"""Capabilities of the installed onnxruntime; Python 3.10 has none later than 1.23."""

from __future__ import annotations

from importlib.metadata import version

import pytest

__all__ = ["BATCHED", "RUNS_NATIVE", "WINDOWS_RUN", "native_runs"]

_VERSION = tuple(int(part) for part in version("onnxruntime").split(".")[:2])
WINDOWS_RUN = RUNS_NATIVE = _VERSION >= (1, 24)
"""It implements sliding windows correctly, and reads graphs of opset 24, those for JetPack 7."""
BATCHED = _VERSION >= (1, 32)
"""It runs several tokens of several sequences in one pass."""
native_runs = pytest.mark.skipif(not RUNS_NATIVE, reason="onnxruntime before 1.24 does not read opset 24")
