"""Runs `portable` and `native` graphs with onnxruntime on a device whose memory holds the KV cache: on CUDA.

Only tokens, positions, masks and logits cross over. Every step attends to all of the slot's bucket, of which the masks
hide what holds no token: less than half, beyond the smallest bucket. (With `device=CPU` the same code runs without a
GPU, for tests.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError
from edgekit.runners.base import Backend, Chunk
from edgekit.runners.checking import FLOAT_ACTIVATIONS, CheckingRunner
from edgekit.runners.device_kv_cache import DeviceKvCache
from edgekit.runners.masks import PADDING
from edgekit.runners.session import CUDA, operators, run_bound
from edgekit.runners.slots import FloatArray

__all__ = ["NativeOnDevice", "OnDeviceRunner", "PortableOnDevice"]

# Operators that move or compute much; shapes are computed on the CPU.
_HEAVY = {
    "Attention", "DequantizeLinear", "GroupQueryAttention", "MatMul", "MatMulNBits", "RMSNormalization",
    "RotaryEmbedding", "SimplifiedLayerNormalization", "Softmax", "TensorScatter",
}  # fmt: skip
_MAX_CHUNK = 128


class OnDeviceRunner(CheckingRunner):
    """A `Runner` over one of onnxruntime's providers; arguments as for `GraphRunner`.

    Raises:
        BundleError: The folder has no graph of this dialect.
        RunnerError: onnxruntime cannot load it, computes a part of it on the CPU, or computes NaN.
    """

    _backend = "onnxruntime's CUDA provider"
    _entries: ClassVar[Mapping[str, str]] = {"session.record_ep_graph_assignment_info": "1", **FLOAT_ACTIVATIONS}
    _kv: DeviceKvCache

    def __init__(self, folder: Path, *, max_chunk: int = _MAX_CHUNK, **options: Any) -> None:
        # Attention is not fused: its memory grows with the chunk, times the context.
        super().__init__(folder, max_chunk=min(max_chunk, _MAX_CHUNK), **{"device": CUDA, **options})
        try:
            self._check_operators()
            self._check_step()
        except BaseException:
            self.close()
            raise

    @property
    def backend(self) -> Backend:
        """The code that computes."""
        return Backend(self._device.runtime)

    def _check_operators(self) -> None:
        """What a provider has no kernel for is computed on the CPU, at the cost of copying in every step."""
        computed = operators(self._session) or {}
        elsewhere = {name for provider, ops in computed.items() if provider != self._device.provider for name in ops}
        if heavy := sorted(elsewhere & _HEAVY):
            raise RunnerError(f"this onnxruntime has no kernel for {', '.join(heavy)} of this graph on the GPU")

    def _check_step(self) -> None:
        """A kernel may also refuse its inputs, or the GPU, when it runs."""
        tokens = [0] * min(2, self._limits.max_chunk)
        if not np.isfinite(self.run([Chunk(0, tokens)])[0]).all():
            raise RunnerError("it computes NaN or infinity")
        self.truncate(0, 0)

    def _new_cache(self, count: int, slots: int, **shape: Any) -> DeviceKvCache:
        return DeviceKvCache(count, slots, device=self._device, **shape)

    def _step_values(self, feeds: dict[str, npt.NDArray[np.generic]]) -> tuple[Any, FloatArray]:
        """Bind the inputs that change in every step; returns the binding and the array for the logits."""
        logits = np.empty((1, feeds["logits_index"].size, self._limits.vocab_size), np.float32)
        binding = self._session.io_binding()
        # Binding copies an input to where it is needed; the CPU reads the arrays themselves, which must live on.
        self._held = [self._value(np.ascontiguousarray(value)) for value in feeds.values()]
        for name, value in zip(feeds, self._held, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("logits", self._value(logits))
        return binding, logits


class NativeOnDevice(OnDeviceRunner):
    """Runs `native` graphs: they write the new rows themselves, into the cache that they read."""

    _dialect: ClassVar[str] = "native"

    def _columns(self, slot: int, length: int, count: int) -> npt.NDArray[np.int64]:
        self._kv.reserve(slot, length, length + count)
        columns = np.arange(self._kv.stride(slot))
        columns[length + count :] = PADDING
        return columns

    def _append(self, slot: int, length: int, feeds: dict[str, npt.NDArray[np.generic]]) -> FloatArray:
        binding, logits = self._step_values({**feeds, "write_indices": np.array([length])})
        for name, value in zip(self._names, self._kv.values(slot), strict=True):
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(name.replace("key_values", "present"), value)
        run_bound(self._session, binding)
        row: FloatArray = logits[0]
        return row


class PortableOnDevice(OnDeviceRunner):
    """Runs `portable` graphs: they return the new rows, which are put into the cache after the step."""

    _dialect: ClassVar[str] = "portable"

    def _columns(self, slot: int, length: int, count: int) -> npt.NDArray[np.int64]:
        self._kv.reserve(slot, length, length + count)
        stride = self._kv.stride(slot)
        columns = np.full(stride + count, PADDING)
        columns[:length] = np.arange(length)
        columns[stride:] = np.arange(length, length + count)
        return columns

    def _append(self, slot: int, length: int, feeds: dict[str, npt.NDArray[np.generic]]) -> FloatArray:
        binding, logits = self._step_values(feeds)
        count, dtype = feeds["input_ids"].size, self._kv.dtype
        block = int(self._shapes[f"past_{self._names[0]}"][3])
        new = self._kv.empty_rows(count)
        for name, value, rows in zip(self._names, self._kv.values(slot), new, strict=True):
            _, heads, positions, size = value.shape()
            # The graph takes the same bytes as blocks of positions.
            shape = [1, heads, positions // block, block, size]
            binding.bind_input(f"past_{name}", self._device.name, 0, dtype.type, shape, value.data_ptr())
            binding.bind_ortvalue_output(name.replace("key_values", "present"), rows)
        run_bound(self._session, binding)
        self._kv.append(slot, length, new)
        row: FloatArray = logits[0]
        return row
