"""Loads a graph into onnxruntime."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.cores import usable_cores
from edgekit.errors import BundleError, RunnerError, broken_library, first_line, missing_extra

__all__ = [
    "BATCHED_FILE",
    "CPU",
    "CUDA",
    "MODEL_FILE",
    "Device",
    "context_of",
    "open_session",
    "operators",
    "provide",
    "run_bound",
]

MODEL_FILE = "model.onnx"
# The same model for onnxruntime 1.32 and later, with several tokens per sequence in a batch.
BATCHED_FILE = "model_batched.onnx"
_BATCHED_FROM = (1, 32)
_UPGRADE = "pip install -U onnxruntime (on Python 3.10, which later versions do not support: a newer Python)"


@dataclass(frozen=True, slots=True)
class Device:
    """Where onnxruntime computes.

    Attributes:
        name: As in `OrtValue`: `cpu`, `cuda`.
        provider: Its execution provider.
        options: Options of the provider.
        runtime: The runner's name; see `Backend.runtime`.
    """

    name: str
    provider: str
    options: Mapping[str, str] = field(default_factory=dict)
    runtime: str = "onnxruntime"


CPU = Device("cpu", "CPUExecutionProvider")
# By default the arena doubles whenever it grows.
CUDA = Device("cuda", "CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"}, "cuda")


def open_session(
    folder: Path,
    dialect: str,
    *,
    threads: int | None = None,
    entries: Mapping[str, str] | None = None,
    batched: bool = False,
    shares_cores: bool = False,
    device: Device = CPU,
) -> Any:
    """Load a graph into an `onnxruntime.InferenceSession`.

    Args:
        folder: Contains `model.onnx` and its data file.
        dialect: The graph's expected dialect.
        threads: Default: one per usable core (`cores.py`).
        entries: Additional session configuration entries, by onnxruntime's names.
        batched: Prefer the graph for several sequences at once, if the folder has it and this onnxruntime supports it.
        shares_cores: Another session computes between the runs of this one.
        device: Where to compute.

    Raises:
        EdgekitError: `missing_extra` or `broken_library`, if onnxruntime cannot be imported.
        BundleError: There is no such graph, or it is in another dialect.
        RunnerError: onnxruntime cannot load it.
    """
    try:
        import onnxruntime as ort
    except ModuleNotFoundError as error:
        raise missing_extra("onnxruntime", "onnxruntime") from error
    except ImportError as error:
        raise broken_library("onnxruntime", error) from error
    path = folder / MODEL_FILE
    if batched and _version(ort.__version__) >= _BATCHED_FROM and (folder / BATCHED_FILE).is_file():
        path = folder / BATCHED_FILE
    if not path.is_file():
        raise BundleError(f"{folder} has no {MODEL_FILE}", hint="is this a bundle exported for the cpu target?")
    options = ort.SessionOptions()
    # With another device, the CPU computes little more than shapes.
    options.intra_op_num_threads = threads or (usable_cores() if device is CPU else 1)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A memory pattern would allocate the activations a second time, without a measurable speedup.
    options.enable_mem_pattern = False
    if shares_cores:
        # Threads that spin until this session's next run slow the other session down: a step of SmolLM2-135M and four
        # of a draft model of the same size took 49 ms instead of 30, on two cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    try:
        session = provide(ort, str(path), options, device)
    except Exception as error:  # onnxruntime's exceptions share no base class
        # Versions before 1.24 cannot read graphs for JetPack 7, and so not the version that they require either.
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


def provide(ort: Any, model: str | bytes, options: Any, device: Device) -> Any:
    """Open a session on a device, and on no other.

    Raises:
        RunnerError: The provider cannot be loaded.
        Exception: onnxruntime failed; its exceptions share no base class.
    """
    if device is not CPU and hasattr(ort, "preload_dlls"):
        # Finds the CUDA libraries that pip installed; it prints what it does not find.
        with redirect_stdout(sys.stderr):
            ort.preload_dlls()
    # Otherwise onnxruntime prints an error and tries the CPU.
    providers = [(device.provider, dict(device.options))]
    session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
    if device.provider not in session.get_providers():
        raise RunnerError(f"onnxruntime cannot load {device.provider}")
    return session


def run_bound(session: Any, binding: Any) -> None:
    """Run a session with bound inputs and outputs, and wait for the copies before and after it."""
    binding.synchronize_inputs()
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()


def operators(session: Any) -> dict[str, Counter[str]] | None:
    """Return how many operators of each type each provider computes; None if this onnxruntime does not tell.

    The session must record it: `session.record_ep_graph_assignment_info`.
    """
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        return None
    found: dict[str, Counter[str]] = {}
    for subgraph in ask():
        found.setdefault(subgraph.ep_name, Counter()).update(node.op_type for node in subgraph.get_nodes())
    return found


def context_of(session: Any, wanted: int | None) -> int:
    """Return the context length: `wanted`, or by default the one that the model was exported for.

    Raises:
        RunnerError: `wanted` is not positive, or longer than the model's.
    """
    longest = int(session.get_modelmeta().custom_metadata_map["edgekit.context_length"])
    if wanted is not None and not 0 < wanted <= longest:
        raise RunnerError(
            f"the context length must be between 1 and {longest}, not {wanted}",
            hint=f"the model was exported for {longest} tokens",
        )
    return wanted or longest


def _version(text: str) -> tuple[int, ...]:
    """Parse the major and minor number."""
    return tuple(int(part) for part in text.split(".")[:2])
