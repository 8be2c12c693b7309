"""Runs the engines of a model one after another, in one optimization profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edgekit.errors import RunnerError
from edgekit.runners.cuda.memory import DeviceMemory
from edgekit.runners.tensorrt.runtime_cache import RuntimeCache
from edgekit.runners.tensorrt.tensors import tensor_names

if TYPE_CHECKING:
    from types import ModuleType

    import tensorrt as trt

__all__ = ["Session", "scratch_bytes"]


def scratch_bytes(engines: Sequence[trt.ICudaEngine]) -> int:
    """Return the memory that engines which run one after another need while they run, in whichever profile."""
    size: int = max(
        engine.get_device_memory_size_for_profile_v2(profile)
        for engine in engines
        for profile in range(engine.num_optimization_profiles)
    )
    return size


class Session:
    """An execution context of every engine, in one profile.

    Args:
        library: `tensorrt` or `tensorrt_rtx`.
        engines: In the order in which they run.
        profile: Index of the optimization profile.
        stream: Handle of the stream that everything runs on.
        scratch: Memory that the engines need while they run, of `scratch_bytes`; all sessions of a stream can share it.
        cache: Creates the contexts.
        errors: Returns what the library has logged since the last call: its functions return only that they failed.

    Raises:
        RunnerError: The library could not create a context.
    """

    def __init__(
        self,
        library: ModuleType,
        engines: Sequence[trt.ICudaEngine],
        profile: int,
        stream: int,
        *,
        scratch: DeviceMemory,
        cache: RuntimeCache,
        errors: Callable[[], Sequence[str]],
    ) -> None:
        self._errors = errors
        self._stream = stream
        self._contexts: list[tuple[trt.IExecutionContext, list[str], list[str]]] = []
        strategy = library.ExecutionContextAllocationStrategy.USER_MANAGED
        for engine in engines:
            context: trt.IExecutionContext | None = cache.create_context(engine, strategy)
            if context is None:
                raise self._failure("it could not create an execution context")
            self._require(
                context.set_optimization_profile_async(profile, stream), f"it has no optimization profile {profile}"
            )
            context.set_device_memory(scratch.address, scratch.size)
            names = tensor_names(engine)
            inputs = [name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT]
            self._contexts.append((context, inputs, [name for name in names if name not in inputs]))
        self._shapes: Mapping[str, tuple[int, ...]] = {}

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Set the address of every tensor; work that was enqueued before keeps its own.

        Raises:
            RunnerError: An address is refused.
        """
        for context, inputs, outputs in self._contexts:
            for name in (*inputs, *outputs):
                self._require(context.set_tensor_address(name, addresses[name]), f"it refused the address of `{name}`")

    def reshape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Set the shape of every input of the model; those that engines pass on follow.

        Raises:
            RunnerError: A shape is outside the profile.
        """
        if shapes == self._shapes:
            return
        self._shapes = {}
        passed: dict[str, tuple[int, ...]] = {}
        for context, inputs, outputs in self._contexts:
            for name in inputs:
                shape = passed[name] if name in passed else shapes[name]
                self._require(context.set_input_shape(name, shape), f"`{name}` cannot have the shape {list(shape)}")
            unknown = context.infer_shapes()
            if unknown:
                raise self._failure(f"it lacks the shape or the address of `{unknown[0]}`")
            passed |= {name: context.get_tensor_shape(name)[:] for name in outputs}
        self._shapes = dict(shapes)

    def enqueue(self) -> None:
        """Enqueue one execution of all engines.

        Raises:
            RunnerError: The library refused; the message has its reason.
        """
        for context, _, _ in self._contexts:
            self._require(context.execute_async_v3(self._stream), "it did not execute")

    def can_be_captured(self) -> bool:
        """Whether the next execution can be captured; TensorRT for RTX cannot yet while it compiles kernels."""
        probes = (getattr(context, "is_stream_capturable", None) for context, _, _ in self._contexts)
        return all(probe(self._stream) for probe in probes if probe is not None)

    def close(self) -> None:
        """Release the contexts; their work must have ended."""
        self._contexts.clear()

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise self._failure(what)

    def _failure(self, what: str) -> RunnerError:
        said = "; ".join(message.splitlines()[0] for message in self._errors() if message)
        return RunnerError(f"{what}: {said}" if said else what)
