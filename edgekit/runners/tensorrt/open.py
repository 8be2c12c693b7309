"""Opens the engine that `edgekit build` made of a bundle for this machine's GPU."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.errors import BundleError, ConfigError, EdgekitError, RunnerError
from edgekit.machine import available_bytes
from edgekit.memory import GIB, SYSTEM_RESERVE
from edgekit.runners.base import Backend, KvNeed, KvShare
from edgekit.runners.cuda.driver import Device, check_driver, open_device
from edgekit.runners.tensorrt.build import MODEL_FILE, installed_library
from edgekit.runners.tensorrt.engine_folder import RUNTIME_CACHE, distrust
from edgekit.runners.tensorrt.engine_set import EngineSet
from edgekit.runners.tensorrt.graph_file import read_graph_file
from edgekit.runners.tensorrt.library import LibraryName, Messages, NvidiaLibrary, find_library
from edgekit.runners.tensorrt.load import load_engines
from edgekit.runners.tensorrt.memory import EngineMemory
from edgekit.runners.tensorrt.runner import TensorRtRunner
from edgekit.runners.tensorrt.store import EngineStore, StoredEngine, graph_digest
from edgekit.runners.tensorrt.tensors import CHUNK

__all__ = ["check_driver", "find_engine", "library_of", "open_engine"]

logger = logging.getLogger(__name__)


def find_engine(folder: Path, compute_capability: str | None = None) -> tuple[Bundle, StoredEngine]:
    """Return a bundle, and its engine with the longest context that the installed library loads on this GPU.

    Args:
        folder: The bundle's folder.
        compute_capability: Of the GPU, such as `8.7`; None asks the driver, if there are engines for several.

    Raises:
        RunnerError: There is none; the message is the reason, and the code `no_engine` if building one would help.
        EdgekitError: `missing_extra`, if NVIDIA's library is not installed.
    """
    build = f"edgekit build {folder}"
    try:
        bundle, store = open_bundle(folder), EngineStore()
        digest = graph_digest(bundle)
        described = store.described(digest)
    # There is no cache folder, or the folder is no bundle, only a graph.
    except (ConfigError, BundleError) as error:
        raise RunnerError(error.message, hint=error.hint) from error
    # Before anything else: without it there is nothing to build an engine with.
    library = installed_library(library_of(bundle))
    if not described:
        raise RunnerError("no engine was built", hint=build, code="no_engine")
    # Gigabytes are hashed the first time: only those of engines that the library loads.
    fitting = store.of_graph(digest, library=library.name, version=library.version)
    if fitting:
        return bundle, max(_for_gpu(fitting, compute_capability), key=lambda one: one.engine.context_length)
    other = next((one for one in described if (one.library, one.version) != (library.name, library.version)), None)
    if other is None:
        raise RunnerError("the engine that was built is damaged", hint=build, code="no_engine")
    raise RunnerError(
        f"the engine was built with {other.library} {other.version}; {library.name} {library.version} is installed",
        hint=build,
        code="no_engine",
    )


def _for_gpu(engines: Sequence[StoredEngine], compute_capability: str | None) -> Sequence[StoredEngine]:
    """Those for this machine's GPU; all, if there are none or it is not known."""
    if len({one.engine.compute_capability for one in engines}) == 1:
        return engines
    if compute_capability is None:
        try:
            with closing(open_device()) as device:
                compute_capability = _capability(device)
        except EdgekitError:  # the reason why the engine is not loaded, too
            return engines
    return [one for one in engines if one.engine.compute_capability == compute_capability] or engines


def open_engine(
    bundle: Bundle,
    stored: StoredEngine,
    *,
    context_length: int,
    sequence_slots: int,
    max_chunk: int | None = None,
    kv_share: KvShare | None = None,
) -> TensorRtRunner:
    """Load an engine onto this machine's GPU.

    The KV cache is allocated at once. All sequence slots share its positions, which are as many as the memory that the
    loaded engine leaves has room for, and at most what fills all slots.

    Args:
        bundle: The bundle.
        stored: Its engine.
        context_length: Tokens that one sequence slot should hold; at most as many as the engine was built for.
        sequence_slots: Maximum number of sequences at a time.
        max_chunk: Maximum tokens of one slot in one step; default: what the engine was built for.
        kv_share: Divides that memory between the KV cache and what else will take some; default: all for the KV cache.

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
            sequence_slots=sequence_slots,
            max_chunk=max_chunk or engine.profiles[CHUNK].tokens,
            share=lambda memory: _positions(device, memory, kv_share),
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
    found = _capability(device)
    if found != engine.compute_capability:
        raise RunnerError(
            f"the engine was built for compute capability {engine.compute_capability}; {device.name} has {found}",
            # Of several GPUs, the build may have taken another one's.
            hint=f"edgekit build {folder} --compute-capability {found}",
        )


def _capability(device: Device) -> str:
    return ".".join(map(str, device.compute_capability))


class _OpenEngine(TensorRtRunner):
    """A runner that closes its device too."""

    def __init__(
        self,
        bundle: Bundle,
        stored: StoredEngine,
        library: NvidiaLibrary,
        device: Device,
        **limits: Any,
    ) -> None:
        engine, messages = stored.engine, Messages()
        # The engines use it for as long as they live.
        self._logger: Any = library.logger(messages)
        paths = [stored.folder / segment.file for segment in engine.segments]
        device.activate()
        try:
            engines = load_engines(library.module, self._logger, paths, messages.take_errors)
        except RunnerError:
            distrust(stored.folder)
            raise
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


def _positions(device: Device, memory: EngineMemory, kv_share: KvShare | None) -> int:
    """The positions of the KV cache, when the weights are loaded and nothing else is allocated.

    Raises:
        RunnerError: There are too few for a short chat.
    """
    full = memory.slots * memory.capacity
    free = free_bytes(device)
    left = int(free * (1 - SYSTEM_RESERVE)) - memory.beside
    if kv_share is not None:
        left = kv_share(max(0, left), KvNeed(memory.position, memory.capacity, memory.slots, not device.integrated))
    positions = min(full, max(0, left) // memory.position)
    if positions < min(full, memory.min_positions):
        smallest = memory.min_positions * memory.position
        raise RunnerError(
            f"beside the engine, {free / GIB:.2f} GiB are left: inputs, outputs and scratch memory take "
            f"{memory.beside / GIB:.2f} GiB, and {memory.min_positions:,} tokens of KV cache {smallest / GIB:.2f} GiB",
            hint="stop what else uses memory, or build the engine for a shorter context: edgekit build --context",
        )
    if positions < memory.capacity:
        logger.warning("memory for %d tokens of KV cache only; the context length is %d", positions, memory.capacity)
    elif positions < full:
        logger.info("memory for %d tokens of KV cache: %d sequences share them", positions, memory.slots)
    return positions


def free_bytes(device: Device) -> int:
    """Return the free memory of a GPU. On a Jetson that is the system's, with the page cache that it would give up."""
    available = available_bytes() if device.integrated else None
    return device.free_bytes() if available is None else available


def library_of(bundle: Bundle) -> LibraryName:
    """Return the library whose engines run where a bundle does."""
    return "tensorrt_rtx" if "nvidia-rtx" in bundle.manifest.compatible else "tensorrt"


def _digest(engine: EngineSet) -> str:
    """SHA-256 of the segments: another build of the same graph is tested anew."""
    return hashlib.sha256("".join(segment.sha256 for segment in engine.segments).encode()).hexdigest()
