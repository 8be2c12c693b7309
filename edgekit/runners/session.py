"""Loads a graph into onnxruntime. It knows dialects by name, and nothing of their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import BundleError, RunnerError, missing_extra
from edgekit.runners.base import first_line
from edgekit.runners.cores import usable_cores

__all__ = ["BATCHED_FILE", "MODEL_FILE", "context_of", "open_session"]

MODEL_FILE = "model.onnx"
# The same model for onnxruntime 1.32 and later, where several sequences may have several tokens each in one pass.
BATCHED_FILE = "model_batched.onnx"
_BATCHED_FROM = (1, 32)
_UPGRADE = "pip install -U onnxruntime (on Python 3.10, which later versions do not support: a newer Python)"


def open_session(
    folder: Path,
    dialect: str,
    *,
    threads: int | None = None,
    entries: Mapping[str, str] | None = None,
    batched: bool = False,
    shares_cores: bool = False,
) -> Any:
    """Load a graph into an `onnxruntime.InferenceSession` on the CPU.

    Args:
        folder: Holds `model.onnx` and its data file.
        dialect: What the graph must be written in.
        threads: None takes one per physical core.
        entries: Further session options, by the names onnxruntime gives them.
        batched: Take the graph for several sequences at once, where the folder and this onnxruntime have it.
        shares_cores: Another session computes in between the runs of this one.

    Raises:
        EdgekitError: `missing_extra`, if onnxruntime is not installed.
        BundleError: There is no such graph, or it is of another dialect.
        RunnerError: onnxruntime cannot load it.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnxruntime") from error
    path = folder / MODEL_FILE
    if batched and _version(ort.__version__) >= _BATCHED_FROM and (folder / BATCHED_FILE).is_file():
        path = folder / BATCHED_FILE
    if not path.is_file():
        raise BundleError(f"{folder} has no {MODEL_FILE}", hint="is this a bundle exported for the cpu target?")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A memory pattern is a second set of activations beside the first, for no speed that could be measured.
    options.enable_mem_pattern = False
    if shares_cores:
        # Threads that wait busily for this session's next run would hold up the other's: a step of SmolLM2-135M and
        # four of a draft model of its size took 49 ms instead of 30, on two cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        # Before 1.24 it reads no graph for JetPack 7, and so not what the graph says it needs.
        hint = _UPGRADE if "Unsupported model IR version" in str(error) else None
        raise RunnerError(f"onnxruntime cannot load {path}: {first_line(error)}", hint=hint) from error
    metadata = session.get_modelmeta().custom_metadata_map
    written = metadata.get("edgekit.dialect", "unknown")
    if written != dialect:
        raise BundleError(
            f"{path} is written in the `{written}` dialect, not in `{dialect}`",
            hint="export the model for this device's target",
            code="bundle_incompatible",
        )
    needed = metadata.get("edgekit.onnxruntime", "0")
    if _version(ort.__version__) < _version(needed):
        raise RunnerError(
            f"this model needs onnxruntime {needed} or later; {ort.__version__} is installed",
            hint=_UPGRADE,
        )
    return session


def context_of(session: Any, wanted: int | None) -> int:
    """Return the tokens a sequence slot shall hold: `wanted`, or all that the model was exported for.

    Raises:
        RunnerError: It was exported for fewer.
    """
    longest = int(session.get_modelmeta().custom_metadata_map["edgekit.context_length"])
    if wanted is not None and not 0 < wanted <= longest:
        raise RunnerError(
            f"the context length must be between 1 and {longest}, not {wanted}",
            hint=f"the model was exported for {longest} tokens",
        )
    return wanted or longest


def _version(text: str) -> tuple[int, ...]:
    """Major and minor number."""
    return tuple(int(part) for part in text.split(".")[:2])
