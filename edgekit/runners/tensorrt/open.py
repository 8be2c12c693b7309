"""Opens the engine that `edgekit build` made of a bundle for this machine's GPU."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.errors import BundleError, ConfigError, RunnerError
from edgekit.runners.base import Backend
from edgekit.runners.cuda.driver import Device, open_device
from edgekit.runners.tensorrt.build import MODEL_FILE, installed_library
from edgekit.runners.tensorrt.engine_set import EngineSet
from edgekit.runners.tensorrt.graph_file import read_graph_file
from edgekit.runners.tensorrt.library import LibraryName, Messages, NvidiaLibrary, find_library
from edgekit.runners.tensorrt.load import load_engines
from edgekit.runners.tensorrt.runner import TensorRtRunner
from edgekit.runners.tensorrt.store import RUNTIME_CACHE, EngineStore, StoredEngine, graph_digest
from edgekit.runners.tensorrt.tensors import CHUNK

__all__ = ["find_engine", "library_of", "open_engine"]

logger = logging.getLogger(__name__)

# Of the memory that is free beside the engine; the rest is for inputs, outputs, execution contexts and the daemon.
_KV_SHARE = 0.6


def find_engine(folder: Path) -> tuple[Bundle, StoredEngine]:
    """Return a bundle, and its engine with the longest context that the installed library loads.

    Args:
        folder: The bundle's folder.

    Raises:
        RunnerError: There is none; the message is the reason.
        EdgekitError: `missing_extra`, if NVIDIA's library is not installed.
    """
    build = f"edgekit build {folder}"
    try:
        bundle = open_bundle(folder)
        engines = EngineStore().of_graph(graph_digest(bundle))
    # There is no cache folder, or the folder is no bundle, only a graph.
    except (ConfigError, BundleError) as error:
        raise RunnerError(error.message, hint=error.hint) from error
    if not engines:
        raise RunnerError("no engine was built", hint=build)
    library = installed_library(library_of(bundle))
    fitting = [one for one in engines if (one.engine.library, one.engine.version) == (library.name, library.version)]
    if not fitting:
        had = engines[0].engine
        raise RunnerError(
            f"the engine was built with {had.library} {had.version}; {library.name} {library.version} is installed",
            hint=build,
        )
    return bundle, max(fitting, key=lambda one: one.engine.context_length)


def open_engine(
    bundle: Bundle, stored: StoredEngine, *, context_length: int, sequence_slots: int, max_chunk: int | None = None
) -> TensorRtRunner:
    """Load an engine onto this machine's GPU.

    The whole KV cache is allocated at once: there are fewer sequence slots than asked for if memory does not suffice.

    Args:
        bundle: The bundle.
        stored: Its engine.
        context_length: Tokens that one sequence slot should hold; at most as many as the engine was built for.
        sequence_slots: Maximum number of sequences at a time.
        max_chunk: Maximum tokens of one slot in one step; default: what the engine was built for.

    Raises:
        RunnerError: There is no GPU of the engine's kind, the engine does not load, or memory does not suffice.
        EdgekitError: `missing_extra`, if a library is not installed.
    """
    engine = stored.engine
    library = find_library(library_of(bundle))
    device = open_device()
    try:
        _check_device(device, engine, bundle.path)
        _check_context(context_length, engine, bundle.path)
        return _OpenEngine(
            bundle,
            stored,
            library,
            device,
            context_length=min(context_length, engine.context_length),
            sequence_slots=_slots(bundle, engine, device, sequence_slots),
            max_chunk=max_chunk or engine.profiles[CHUNK].tokens,
        )
    except BaseException:
        device.close()
        raise


def _check_context(wanted: int, engine: EngineSet, folder: Path) -> None:
    if wanted > engine.context_length:
        logger.warning(
            "the engine holds %d of the bundle's %d tokens (hint: edgekit build %s --context %d)",
            engine.context_length,
            wanted,
            folder,
            wanted,
        )


def _check_device(device: Device, engine: EngineSet, folder: Path) -> None:
    found = ".".join(map(str, device.compute_capability))
    if found != engine.compute_capability:
        raise RunnerError(
            f"the engine was built for compute capability {engine.compute_capability}; {device.name} has {found}",
            # Of several GPUs, the build may have taken another one's.
            hint=f"edgekit build {folder} --compute-capability {found}",
        )


class _OpenEngine(TensorRtRunner):
    """A runner that closes its device too."""

    def __init__(
        self,
        bundle: Bundle,
        stored: StoredEngine,
        library: NvidiaLibrary,
        device: Device,
        **limits: int,
    ) -> None:
        engine, messages = stored.engine, Messages()
        # The engines use it for as long as they live.
        self._logger: Any = library.logger(messages)
        paths = [stored.folder / segment.file for segment in engine.segments]
        device.activate()
        engines = load_engines(library.module, self._logger, paths, messages.take_errors)
        window = read_graph_file(bundle.path / MODEL_FILE).model.metadata.get("edgekit.window")
        super().__init__(
            library.module,
            engines,
            device,
            window=None if window is None else int(window),
            **limits,
            errors=messages.take_errors,
            backend=Backend(library.name, engine.version, _digest(engine)),
            runtime_cache=stored.folder / RUNTIME_CACHE,
        )
        self._owned: Device | None = device

    def close(self) -> None:
        """Release everything, the device included."""
        super().close()
        device, self._owned = self._owned, None
        if device is not None:
            device.close()


def _slots(bundle: Bundle, engine: EngineSet, device: Device, wanted: int) -> int:
    """How many sequence slots fit; at least one, whose allocation may then fail with the reason."""
    per_slot = bundle.manifest.memory.kv_cache_per_token * engine.context_length
    fitting = int(_KV_SHARE * (device.free_bytes() - engine.size)) // max(1, per_slot)
    slots = max(1, min(wanted, fitting))
    if slots < wanted:
        logger.warning(
            "memory for %d of %d sequences of %d tokens: fewer requests run at the same time (hint: edgekit build "
            "with a shorter --context)",
            slots,
            wanted,
            engine.context_length,
        )
    return slots


def library_of(bundle: Bundle) -> LibraryName:
    """Return the library whose engines run where a bundle does."""
    return "tensorrt_rtx" if "nvidia-rtx" in bundle.manifest.compatible else "tensorrt"


def _digest(engine: EngineSet) -> str:
    """SHA-256 of the segments: another build of the same graph is tested anew."""
    return hashlib.sha256("".join(segment.sha256 for segment in engine.segments).encode()).hexdigest()
