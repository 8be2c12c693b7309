"""Finds NVIDIA's library, TensorRT or TensorRT for RTX, and hides where their versions differ.

Differences are found by looking for a feature, not by comparing versions. The library is imported only here, and only
when it is used: it is native code of hundreds of megabytes, and may crash.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from edgekit.errors import EdgekitError, broken_library, missing_extra
from edgekit.jetson.board import device_tree, find_board

__all__ = ["LibraryName", "Messages", "NvidiaLibrary", "find_library"]

LibraryName = Literal["tensorrt", "tensorrt_rtx"]

# JetPack's; NVIDIA's package for RTX cards; the same without the package that only forwards to it.
_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
_JETPACK = "sudo apt install --reinstall nvidia-jetpack; in a container, take an image with TensorRT"
_KEPT = 20
# Logged for every int64 input; ours are int64 on purpose.
_EXPECTED = "Int64 binding"


class Messages:
    """The last errors and warnings that the library logged: its calls report a failure only as None or False.

    Args:
        on_verbose: Receives every verbose message.
    """

    def __init__(self, on_verbose: Callable[[str], None] | None = None) -> None:
        self.errors: deque[str] = deque(maxlen=_KEPT)
        self.warnings: deque[str] = deque(maxlen=_KEPT)
        self.on_verbose = on_verbose

    def take_errors(self) -> list[str]:
        """Return the errors since the last call of this method."""
        errors = list(self.errors)
        self.errors.clear()
        return errors


@dataclass(frozen=True, slots=True)
class NvidiaLibrary:
    """The library that was found.

    Attributes:
        module: TensorRT's Python module.
        name: `tensorrt_rtx` builds for any GPU without having one; `tensorrt` builds for the GPU of this machine.
        version: Of the library.
    """

    module: Any
    name: LibraryName
    version: str

    @property
    def streams(self) -> bool:
        """Whether an engine can be written while it is serialized (TensorRT 10.13 and later)."""
        return hasattr(self.module, "IStreamWriter") and hasattr(
            self.module.Builder, "build_serialized_network_to_stream"
        )

    @property
    def times_kernels(self) -> bool:
        """Whether the builder times kernels on the GPU, so that a timing cache makes the next build faster."""
        return self.name == "tensorrt" and hasattr(self.module.IBuilderConfig, "create_timing_cache")

    def capabilities(self) -> dict[int, str]:
        """Return the compute capabilities that it builds for, `86 -> SM86`; empty if it builds for its own GPU."""
        if self.name == "tensorrt":
            return {}
        members = self.module.ComputeCapability.__members__
        return {int(name[2:]): name for name in members if name.startswith("SM")}

    def logger(self, messages: Messages) -> Any:
        """Return an `ILogger` that keeps messages and prints nothing; it must outlive all objects that use it."""
        trt = self.module
        severe = {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}

        class Logger(trt.ILogger):  # type: ignore[misc,name-defined]  # the library ships no types
            def log(self, severity: Any, message: str) -> None:
                if severity in severe:
                    messages.errors.append(message)
                elif severity == trt.ILogger.WARNING:
                    if _EXPECTED not in message:
                        messages.warnings.append(message)
                elif messages.on_verbose is not None:
                    messages.on_verbose(message)

        return Logger()

    def monitor(
        self,
        start: Callable[[str, str | None, int], None],
        step: Callable[[str, int], bool],
        finish: Callable[[str], None],
    ) -> Any:
        """Return an `IProgressMonitor` that forwards its calls, which come from threads of the builder.

        Args:
            start: Takes a phase, the phase that it is a part of, and its number of steps.
            step: Takes a phase and the index of a finished step; returns False to cancel the build.
            finish: Takes a phase.
        """

        class Monitor(self.module.IProgressMonitor):  # type: ignore[misc,name-defined]  # as above
            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, index: int) -> bool:
                return step(phase_name, index)

            def phase_finish(self, phase_name: str) -> None:
                finish(phase_name)

        return Monitor()

    def create_network(self, builder: Any) -> Any:
        """Return an empty strongly typed network."""
        flag = self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return builder.create_network(1 << int(flag))

    def set_capability(self, config: Any, capability: str) -> None:
        """Choose the GPU to build for by the library's name of its compute capability, one of `capabilities`."""
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(self.module.ComputeCapability, capability), 0)

    def allow_decomposed_attention(self, network: Any) -> None:
        """Allow several kernels for one attention where no fused one exists; the parser disallows it."""
        trt = self.module
        if not hasattr(trt, "IAttentionInputLayer"):  # before 10.14
            return
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.type == trt.LayerType.ATTENTION_INPUT:
                # The library returns the base class; its documentation narrows it this way.
                layer.__class__ = trt.IAttentionInputLayer
                layer.attention.decomposable = True

    def serialize(self, builder: Any, network: Any, config: Any, write: Callable[[memoryview], None]) -> bool:
        """Build a network and write the engine, if possible without ever holding it in memory.

        Args:
            builder: An `IBuilder`.
            network: The network.
            config: The builder's configuration.
            write: Receives the engine in parts. If it raises an `OSError`, the build fails, and the caller finds the
                error by its own means: an exception cannot pass through the library.

        Returns:
            Whether it succeeded; if not, the log has the reason.
        """
        if not self.streams:
            engine = builder.build_serialized_network(network, config)
            if engine is None:
                return False
            write(memoryview(engine))
            return True

        class Writer(self.module.IStreamWriter):  # type: ignore[misc,name-defined]  # as above
            def write(self, data: bytes) -> int:
                try:
                    write(memoryview(data))
                except OSError:
                    return 0
                return len(data)

        return bool(builder.build_serialized_network_to_stream(network, config, Writer()))

    def load_timing_cache(self, config: Any, data: bytes) -> Any:
        """Give the builder the timings of earlier builds; those of another library or GPU are ignored."""
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        return cache

    @staticmethod
    def timings(config: Any) -> bytes:
        """Return the timings, those of this build included."""
        return bytes(memoryview(config.get_timing_cache().serialize()))


def find_library(prefer: LibraryName | None = None) -> NvidiaLibrary:
    """Import the library.

    Args:
        prefer: The one to take if both are installed; otherwise TensorRT.

    Raises:
        EdgekitError: `missing_extra`, if there is none; the hint names the extra of the preferred one. Or
            `broken_library`, if it is installed and cannot be imported.
    """
    broken: dict[str, BaseException] = {}
    modules = sorted(_MODULES, key=lambda name: not name.startswith(prefer or "tensorrt"))
    for name in modules:
        try:
            module = import_module(name)
        except ModuleNotFoundError:
            continue
        # A library that it loads is missing, as in a container; or it is the stub of the public index.
        except (ImportError, OSError, RuntimeError) as error:
            broken[name] = error
            continue
        # Before the first use of a class, so that an empty module of this name is not taken for the library.
        if hasattr(module, "IBuilderConfig"):
            # Only the library for RTX builds for a GPU that the machine does not have.
            rtx = hasattr(module.IBuilderConfig, "set_compute_capability")
            return NvidiaLibrary(module, "tensorrt_rtx" if rtx else "tensorrt", str(module.__version__))
    jetson = find_board(device_tree()) is not None
    for name, cause in broken.items():
        if prefer is not None and name.removesuffix("_bindings") != prefer:
            continue  # whether the other library would load is of no interest
        hint = _JETPACK if name == "tensorrt" and jetson else None
        raise broken_library(name, cause, hint=hint) from cause
    if jetson and prefer != "tensorrt_rtx":
        # No index has it: the extra alone does not install it.
        raise EdgekitError(
            "JetPack's `tensorrt` is not installed, or not visible to this Python",
            hint="edgekit doctor says which, and what mends it",
            code="missing_extra",
        )
    wanted = prefer or "tensorrt_rtx"
    raise missing_extra(wanted, wanted.replace("_", "-"))
