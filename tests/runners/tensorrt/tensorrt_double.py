"""A double of TensorRT's Python API over `DriverDouble`: proves the runner's bookkeeping, not numbers nor speed.

An engine is a graph that onnxruntime executes when the stream is synchronized: inputs are read from the bound
addresses, outputs are copied to them. What TensorRT refuses, or answers with garbage, fails here:

- an address that is null or not aligned to 256 bytes, or whose memory is too short for the shape;
- a shape outside the profile, or none;
- a KV cache that is written in place, with past and present at two addresses;
- a capture without a plain execution with the same shapes before, and anything but an execution inside of one;
- a graph whose context was changed or released since the capture;
- too little scratch memory. Each execution destroys its contents.

`test_double.py` compares names and parameters with the real bindings of TensorRT 10.3 and 10.16 and TensorRT for RTX.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from math import prod
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from tests.runners.cuda.driver_double import CUresult, DriverDouble, Fault

__all__ = ["CLASSES", "TensorRtDouble", "write_engine"]

Array = npt.NDArray[Any]
Executor = Callable[[dict[str, Array]], dict[str, Array]]
SCRATCH = 4096
_MASKS = ("attention_mask", "window_mask")


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT64 = 8


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


_TYPES = {
    "tensor(float)": (DataType.FLOAT, np.float32),
    "tensor(float16)": (DataType.HALF, np.float16),
    "tensor(int64)": (DataType.INT64, np.int64),
}


def write_engine(
    path: Path,
    graph: Path,
    profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]],
    *,
    aliases: Mapping[str, str] | None = None,
    exact: bool = False,
) -> Path:
    """Write an "engine": which graph, and the min, opt and max shape of every input in each profile.

    Args:
        path: The engine.
        graph: The graph, for onnxruntime.
        profiles: By index.
        aliases: By output, the input that is the same memory.
        exact: Execute each token of each sequence on its own, in one shape, so that numbers do not depend on batches
            and chunks. What a token sees is taken from its row of the masks.
    """
    fields = {"graph": str(graph), "profiles": profiles, "aliases": dict(aliases or {}), "exact": exact}
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


@dataclass(frozen=True)
class _Tensor:
    mode: TensorIOMode
    dtype: DataType
    numpy: type
    names: tuple[int | str, ...]
    shape: tuple[int | str, ...]


class Runtime:
    driver: DriverDouble

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: mmap) -> ICudaEngine | None:
        try:
            fields = json.loads(serialized_engine[:])
        except ValueError:
            self.logger.log(ILogger.ERROR, "the engine is damaged")
            return None
        return ICudaEngine(self.driver, self.logger, fields)


class ICudaEngine:
    def __init__(self, driver: DriverDouble, logger: ILogger, fields: Mapping[str, Any]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # As the CPU runners that check the same graphs.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self._session = ort.InferenceSession(fields["graph"], options, providers=["CPUExecutionProvider"])
        self._driver, self._logger = driver, logger
        self._profiles = [
            {name: [tuple(shape) for shape in shapes] for name, shapes in profile.items()}
            for profile in fields["profiles"]
        ]
        self._aliases: dict[str, str] = fields["aliases"]
        self._tensors: dict[str, _Tensor] = {
            value.name: _Tensor(mode, *_TYPES[value.type], tuple(value.shape), self._declared(value.name, value.shape))
            for mode, values in (
                (TensorIOMode.INPUT, self._session.get_inputs()),
                (TensorIOMode.OUTPUT, self._session.get_outputs()),
            )
            for value in values
        }
        self._execute: Executor = self._each_token if fields["exact"] else self._whole

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._tensors[name].mode if name in self._tensors else TensorIOMode.NONE

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._tensors[name].dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return list(self._profiles[profile_index][name])

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._aliases.get(name, "")

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return SCRATCH * (1 + profile_index)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy | IRuntimeConfig = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext:
        if isinstance(strategy, IRuntimeConfig):
            context = self.create_execution_context(strategy._strategy)
            context._cache = strategy._cache
            return context
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED, "the runner shares scratch memory"
        return IExecutionContext(self)

    def _declared(self, name: str, shape: list[int | str]) -> tuple[int | str, ...]:
        """The shape as the builder knows it: a dimension that no profile changes is a number."""
        known = [profile[name] for profile in self._profiles if name in profile]
        if name in self._aliases:
            known = [profile[self._aliases[name]] for profile in self._profiles]
        if not known:
            return tuple(shape)
        sizes = zip(*(one for shapes in known for one in shapes), strict=True)
        return tuple(size if len({*of}) > 1 else of[0] for size, of in zip(shape, sizes, strict=True))

    def _whole(self, feeds: dict[str, Array]) -> dict[str, Array]:
        names = [value.name for value in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feeds), strict=True))

    def _each_token(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Execute each token of each sequence on its own, in one shape for all."""
        batch, count = feeds["position_ids"].shape
        results: list[list[dict[str, Array]]] = []
        for sequence in range(batch):
            steps: list[dict[str, Array]] = []
            for token in range(count):
                one = self._in_place(feeds, sequence, token, steps)
                one = one or self._with_what_it_sees(feeds, sequence, token, steps)
                one["logits_index"] = np.zeros(1, np.int64)
                rest = feeds.keys() - one.keys()
                one |= {name: feeds[name][sequence : sequence + 1, token : token + 1] for name in rest}
                steps.append(self._whole({value.name: one[value.name] for value in self._session.get_inputs()}))
            results.append(steps)
        outputs = {}
        for name in results[0][0]:
            if name in self._aliases:
                outputs[name] = np.concatenate([steps[-1][name] for steps in results])
                continue
            axis = 2 if name.startswith("present.") else 1
            joined = np.concatenate([np.concatenate([step[name] for step in steps], axis) for steps in results])
            outputs[name] = joined[:, feeds["logits_index"]] if name == "logits" else joined
        return outputs

    def _in_place(
        self, feeds: dict[str, Array], sequence: int, token: int, steps: list[dict[str, Array]]
    ) -> dict[str, Array]:
        """The inputs of a token that a graph writes into its cache."""
        if not self._aliases:
            return {}
        of = slice(sequence, sequence + 1)
        one = {cache: steps[-1][name] if steps else feeds[cache][of] for name, cache in self._aliases.items()}
        one["write_indices"] = feeds["write_indices"][of] + token
        return one | {name: feeds[name][of, :, token : token + 1] for name in _MASKS if name in feeds}

    def _with_what_it_sees(
        self, feeds: dict[str, Array], sequence: int, token: int, steps: list[dict[str, Array]]
    ) -> dict[str, Array]:
        """The inputs of a token; what it sees comes first in a cache of fixed length, in its order."""
        caches = [name for name in feeds if name.startswith("past_key_values.")]
        _, heads, held, block, size = feeds[caches[0]].shape
        blocks = max(profile[caches[0]][2][2] for profile in self._profiles)
        rows = {name: feeds[name][sequence, 0, token] for name in _MASKS if name in feeds}
        visible = np.flatnonzero(np.any([row == 0 for row in rows.values()], 0))
        assert visible.size, "a token sees at least itself"
        assert visible[-1] == held * block + token, "a token sees itself, and no later one"
        one: dict[str, Array] = {}
        for name in caches:
            old = feeds[name][sequence].reshape(heads, held * block, size)
            new = [step[name.replace("past_key_values", "present")][0] for step in steps]
            seen = np.concatenate([old, *new], 1)[:, visible[:-1]]
            padded = np.zeros((heads, blocks * block, size), seen.dtype)
            padded[:, : seen.shape[1]] = seen
            one[name] = padded.reshape(1, heads, blocks, block, size)
        for name, row in rows.items():
            mask = np.full((1, 1, 1, blocks * block + 1), -65504, row.dtype)
            mask[..., : visible.size - 1], mask[..., -1] = row[visible[:-1]], row[visible[-1]]
            one[name] = mask
        return one


class IRuntimeCache:
    """What was compiled: a letter for each context that has run."""

    def __init__(self) -> None:
        self._compiled = b""

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"cache:"):
            return False
        self._compiled = blob[6:]
        return True

    def serialize(self) -> bytes:
        return b"cache:" + self._compiled


class IRuntimeConfig:
    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self._cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        self._cache = cache
        return True

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> None:
        self._strategy = strategy


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._driver = engine, engine._driver
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        self._ran: dict[str, tuple[int, ...]] | None = None
        self._changes = 0
        self._cache: IRuntimeCache | None = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if self._driver.capturing(stream_handle) or profile_index >= self._engine.num_optimization_profiles:
            return self._refuse("no such profile, or a stream that captures")
        self._changes += 1
        self._profile, self._shapes, self._ran = profile_index, {}, None
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._profile is not None
        assert size >= self._engine.get_device_memory_size_for_profile_v2(self._profile)
        assert memory % 256 == 0
        self._changes += 1
        self._scratch = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile is None or self._engine.get_tensor_mode(name) != TensorIOMode.INPUT:
            return self._refuse(f"no profile is set, or `{name}` is no input")
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self._refuse(f"{name}: {shape} is not between {low} and {high}")
        self._changes += 1
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._tensors or not memory or memory % 256:
            return self._refuse(f"`{name}` cannot be at {memory:#x}")
        self._changes += 1
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._inputs() if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        if name in self._engine._aliases:
            return self._shapes[self._engine._aliases[name]]
        # Dimensions of one name have one size.
        sizes: dict[int | str, int] = {}
        for known, shape in self._shapes.items():
            sizes |= zip(self._engine._tensors[known].names, shape, strict=True)
        return tuple(size if isinstance(size, int) else sizes[size] for size in self._engine._tensors[name].names)

    def execute_async_v3(self, stream_handle: int) -> bool:
        tensors = self._engine._tensors
        if missing := [name for name in tensors if name not in self._addresses] + self.infer_shapes():
            return self._refuse(f"no address or shape of {missing}")
        for output, cache in self._engine._aliases.items():
            if self._addresses[output] != self._addresses[cache]:
                return self._refuse(f"`{output}` must be at the address of `{cache}`")
        memory, size = self._scratch
        if not memory:
            return self._refuse("no scratch memory")
        if self._driver.capturing(stream_handle):
            if self._ran != self._shapes:
                return self._refuse("a capture needs a plain execution with these shapes first")
        else:
            if self._ran is None and self._cache is not None:
                self._cache._compiled += b"k"
            self._ran = dict(self._shapes)
        self._driver.log.append("execute")
        shapes = {name: self.get_tensor_shape(name) for name in tensors}
        addresses, inputs = dict(self._addresses), self._inputs()
        driver, engine, context, changes = self._driver, self._engine, weakref.ref(self), self._changes

        def array(name: str) -> Array:
            kind = np.dtype(tensors[name].numpy)
            flat = driver.memory(addresses[name], prod(shapes[name]) * kind.itemsize)
            return flat.view(kind).reshape(shapes[name])

        def work() -> None:
            now = context()
            if now is None or now._changes != changes:
                raise Fault(CUresult.CUDA_ERROR_INVALID_HANDLE, "the context was changed or released since")
            driver.memory(memory, size)[:] = 0xFF
            results = engine._execute({name: array(name).copy() for name in inputs})
            for name, value in results.items():
                array(name)[...] = value.reshape(shapes[name])

        self._driver.enqueue(stream_handle, work)
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return not self._driver.capturing(stream) and self._ran == self._shapes

    def _inputs(self) -> list[str]:
        return [name for name, tensor in self._engine._tensors.items() if tensor.mode == TensorIOMode.INPUT]

    def _refuse(self, why: str) -> bool:
        self._engine._logger.log(ILogger.ERROR, why)
        return False


CLASSES = (Runtime, ICudaEngine, IRuntimeConfig, IRuntimeCache, IExecutionContext)


class TensorRtDouble:
    """What `import tensorrt` gives, over one driver."""

    TensorIOMode = TensorIOMode
    DataType = DataType
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    ILogger = ILogger

    def __init__(self, driver: DriverDouble) -> None:
        self.Runtime = type("Runtime", (Runtime,), {"driver": driver})
