"""Whether a TensorRT engine is wanted at all; it loads nothing of what builds one, so that other starts stay fast."""

from __future__ import annotations

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import ENGINE_DIALECTS
from edgekit.config import GenerationConfig
from edgekit.machine import probe
from edgekit.recognition import recognise
from edgekit.target import Target

__all__ = ["may_have_engine", "this_target"]


def this_target() -> Target:
    """Return the target that this machine is; with a GPU of NVIDIA's that is known, it has a compute capability."""
    return recognise(probe())


def may_have_engine(bundle: Bundle, config: GenerationConfig) -> bool:
    """Whether a bundle is one for TensorRT, and its engine is wanted."""
    artifact = bundle.manifest.artifact
    wanted = config.build_engine and config.runner in {"auto", "tensorrt"}
    return wanted and artifact.kind == "onnx" and artifact.dialect in ENGINE_DIALECTS
