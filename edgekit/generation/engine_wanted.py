"""Whether a TensorRT engine is wanted at all; it loads nothing of what builds one, so that other starts stay fast."""

from __future__ import annotations

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import ENGINE_DIALECTS
from edgekit.config import GenerationConfig
from edgekit.machine import probe
from edgekit.recognition import recognise

__all__ = ["gpu_capability", "may_have_engine"]


def gpu_capability() -> str | None:
    """Return the compute capability of this machine's GPU, `8.7`; None if it has none of NVIDIA's that is known."""
    return recognise(probe()).compute_capability


def may_have_engine(bundle: Bundle, config: GenerationConfig) -> bool:
    """Whether a bundle is one for TensorRT, and its engine is wanted."""
    artifact = bundle.manifest.artifact
    wanted = config.build_engine and config.runner in {"auto", "tensorrt"}
    return wanted and artifact.kind == "onnx" and artifact.dialect in ENGINE_DIALECTS
