"""Base of the runners of edgekit's ONNX dialects: an onnxruntime session, and a KV cache that the graph uses in place.

Handles the inputs and outputs that all dialects share; subclasses add those of their own dialect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgekit.runners.base import Chunk, Limits
from edgekit.runners.device_kv_cache import DeviceKvCache
from edgekit.runners.kv_cache import KvCache
from edgekit.runners.session import CPU, Device, context_of, open_session
from edgekit.runners.slots import SlotRunner

__all__ = ["GraphRunner"]


class GraphRunner(SlotRunner):
    """A `Runner` over onnxruntime; subclasses implement the step.

    Args:
        folder: Contains the graph and its data file.
        context_length: Tokens per slot; default: the model's context length.
        sequence_slots: Maximum number of sequences at a time.
        max_chunk: Maximum tokens of one slot in one step.
        threads: Default: one per usable core (`cores.py`).
        shares_cores: Another runner computes between the steps of this one.
        device: Where to compute.

    Raises:
        BundleError: The folder has no graph of this dialect.
        RunnerError: onnxruntime cannot load it, or the context is longer than the model's.
    """

    _backend = _runtime = "onnxruntime"
    _dialect: ClassVar[str]
    _entries: ClassVar[Mapping[str, str]] = {}
    _batched: ClassVar[bool] = False
    _cache_type: ClassVar[type[KvCache]] = KvCache
    _kv: KvCache | DeviceKvCache

    def __init__(
        self,
        folder: Path,
        *,
        context_length: int | None = None,
        sequence_slots: int = 1,
        max_chunk: int = 512,
        threads: int | None = None,
        shares_cores: bool = False,
        device: Device = CPU,
    ) -> None:
        session = open_session(
            folder,
            self._dialect,
            threads=threads,
            entries=self._entries,
            batched=self._batched,
            shares_cores=shares_cores,
            device=device,
        )
        import onnxruntime as ort

        self._device = device
        self._session: Any = session
        self._value = ort.OrtValue.ortvalue_from_numpy
        self._metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
        self._names = [i.name.removeprefix("past_") for i in session.get_inputs() if i.name.startswith("past_")]
        self._shapes = {i.name: i.shape for i in (*session.get_inputs(), *session.get_outputs())}
        _, heads, *_, head_dim = self._shapes[f"past_{self._names[0]}"]
        half = any("float16" in i.type for i in session.get_inputs())
        context, positions = self._positions(context_of(session, context_length))
        dtype = np.float16 if half else np.float32
        self._kv = self._new_cache(
            len(self._names), sequence_slots, heads=heads, positions=positions, head_dim=head_dim, dtype=np.dtype(dtype)
        )
        self._lengths = [0] * sequence_slots
        self._limits = Limits(
            context_length=context,
            sequence_slots=sequence_slots,
            max_chunk=min(max_chunk, context),
            vocab_size=int(self._shapes["logits"][2]),
            kv_bytes_per_token=self._kv.bytes_per_token,
            kv_pool=self._kv.pool if isinstance(self._kv, DeviceKvCache) else None,
        )

    def close(self) -> None:
        """Release the model and the KV cache."""
        self._closed = True
        self._session = None
        self._kv.close()

    def _new_cache(self, count: int, slots: int, **shape: Any) -> KvCache | DeviceKvCache:
        return self._cache_type(count, slots, **shape)

    def _positions(self, context: int) -> tuple[int, int]:
        """Return the supported context length, at most `context`, and the positions that its buffers need."""
        return context, context

    def _length(self, slot: int) -> int:
        return self._lengths[slot]

    def _truncate(self, slot: int, length: int) -> None:
        self._lengths[slot] = length
        if length == 0:
            self._kv.release(slot)

    def _read(self, slot: int, start: int, stop: int) -> bytes:
        return self._kv.read(slot, start, stop)

    def _write(self, slot: int, count: int, data: memoryview) -> None:
        self._kv.write(slot, self._lengths[slot], count, data)
        self._lengths[slot] += count

    def _snapshot(self) -> list[int]:
        return list(self._lengths)

    def _restore(self, before: list[int], chunks: Sequence[Chunk]) -> None:  # noqa: ARG002
        self._lengths = before

    def _bind(self, cache: list[Any], inputs: Mapping[str, Any], logits: Any) -> Any:
        """Bind OrtValues to a run, past and present to the same ones. They must outlive the returned binding."""
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(self._names, cache, strict=True):
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(name.replace("key_values", "present"), value)
        binding.bind_ortvalue_output("logits", logits)
        return binding
