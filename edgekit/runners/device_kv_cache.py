"""KV cache in the memory of a device, which onnxruntime reads and writes there.

A slot has buffers of its own, for the smallest bucket of positions that holds it, and is laid anew when it outgrows
them, as in `BucketedKvCache`. A device's buffers can only be copied whole, so rows are put behind the others, and read,
by two small graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import RunnerError, first_line
from edgekit.runners.buckets import KvPool, bucket_of
from edgekit.runners.session import CPU, Device, provide, run_bound
from edgekit.runners.tiny_onnx import FLOAT, FLOAT16, INT64, Node, Value, encode_model

__all__ = ["DeviceKvCache"]

_OPSET, _IR_VERSION = 18, 8


class DeviceKvCache:
    """Keys and values of every layer, each an OrtValue `[1, heads, bucket, head_dim]` per slot.

    Args:
        count: Number of OrtValues of a slot: two per layer.
        slots: Number of sequence slots.
        heads: Number of KV heads.
        positions: Capacity of a slot.
        head_dim: Elements per head.
        dtype: Element type: float16 or float32.
        device: Where.

    Attributes:
        pool: What the slots take: buffers of their buckets.

    Raises:
        RunnerError: onnxruntime cannot be loaded there.
    """

    def __init__(
        self,
        count: int,
        slots: int,
        *,
        heads: int,
        positions: int,
        head_dim: int,
        dtype: np.dtype[Any],
        device: Device,
    ) -> None:
        import onnxruntime as ort

        self._count, self._heads, self._head_dim, self.dtype = count, heads, head_dim, dtype
        self._device, self._value = device, ort.OrtValue.ortvalue_from_numpy
        self._allocate, self._empty = ort.OrtValue.ortvalue_from_shape_and_type, dict[int, list[Any]]()
        # A multiple of the block in which `portable` graphs read the cache.
        self.capacity = -(-positions // 8) * 8
        self.bytes_per_token = count * heads * head_dim * dtype.itemsize
        self._slots: list[list[Any]] = [[] for _ in range(slots)]
        self.pool = KvPool(slots * self.capacity, self.capacity)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        element = FLOAT16 if dtype == np.float16 else FLOAT
        try:
            self._writer: Any = provide(ort, _writer(count, heads, head_dim, element), options, device)
            self._reader: Any = provide(ort, _reader(count, heads, head_dim, element), options, device)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise RunnerError(f"onnxruntime cannot copy KV cache on {device.name}: {first_line(error)}") from error

    def close(self) -> None:
        """Release all memory."""
        self._slots, self._empty = [], {}
        self._writer = self._reader = None

    def stride(self, slot: int) -> int:
        """Return the positions of the slot's buffers: from one head to the next; 0 before `reserve`."""
        values = self._slots[slot]
        return int(values[0].shape()[2]) if values else 0

    def values(self, slot: int) -> list[Any]:
        """Return the slot's OrtValues; valid until `reserve`."""
        return self._slots[slot]

    def reserve(self, slot: int, length: int, positions: int) -> None:
        """Make room for `positions` tokens, of which the slot holds `length`.

        Raises:
            RunnerError: The device has no memory for it; the slot is as before.
        """
        bucket = bucket_of(positions, self.capacity)
        if bucket <= self.stride(slot):
            return
        held = self.read(slot, 0, length) if length else b""
        # Zeros: the masks hide what no token has been written to, but a NaN would show through them.
        zeros = np.zeros((1, self._heads, bucket, self._head_dim), self.dtype)
        try:
            # On the CPU an OrtValue is a view of its array.
            shared = self._device is not CPU
            self._slots[slot] = [
                self._value(zeros if shared else zeros.copy(), self._device.name) for _ in range(self._count)
            ]
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise RunnerError(
                f"no memory on {self._device.name} for {bucket} tokens: {first_line(error)}",
                hint="use fewer sequence slots or a shorter context",
            ) from error
        if length:
            self._put(slot, 0, length, self._rows(length, memoryview(held)))

    def empty_rows(self, count: int) -> list[Any]:
        """Return OrtValues for a graph to write `count` new rows into, for `append`."""
        if count not in self._empty:
            shape = (1, self._heads, count, self._head_dim)
            # Only the last ones are kept: chunks of a prompt can have any length.
            self._empty = {
                count: [self._allocate(shape, self.dtype.type, self._device.name) for _ in range(self._count)]
            }
        return self._empty[count]

    def append(self, slot: int, start: int, rows: Sequence[Any]) -> None:
        """Write rows, OrtValues `[1, heads, n, head_dim]`, behind the `start` ones; there must be room."""
        self._put(slot, start, int(rows[0].shape()[2]), rows)

    def release(self, slot: int) -> None:
        """Give a slot's memory back; its contents are lost."""
        self._slots[slot] = []

    def read(self, slot: int, start: int, stop: int) -> bytes:
        """Copy positions `start:stop`, as `[arrays, heads, positions, head_dim]`."""
        if start == stop:
            return b""
        binding = self._reader.io_binding()
        for name, value in zip(_names("cache", self._count), self._slots[slot], strict=True):
            binding.bind_ortvalue_input(name, value)
        parts = np.empty((self._count, 1, self._heads, stop - start, self._head_dim), self.dtype)
        for name, part in zip(_names("rows", self._count), parts, strict=True):
            binding.bind_ortvalue_output(name, self._value(part))
        span = [self._value(np.array([number], np.int64)) for number in (start, stop, 2)]
        for name, value in zip(("start", "stop", "axis"), span, strict=True):
            binding.bind_ortvalue_input(name, value)
        run_bound(self._reader, binding)
        return parts.tobytes()

    def write(self, slot: int, start: int, count: int, data: memoryview) -> None:
        """Write `count` positions, in the layout of `read`, behind the `start` ones that the slot holds."""
        self.reserve(slot, start, start + count)
        self._put(slot, start, count, self._rows(count, data))

    def _rows(self, count: int, data: memoryview) -> list[Any]:
        parts = np.frombuffer(data, self.dtype).reshape(self._count, 1, self._heads, count, self._head_dim)
        return [self._value(part) for part in parts]

    def _put(self, slot: int, start: int, count: int, rows: Sequence[Any]) -> None:
        binding = self._writer.io_binding()
        at = _indices(self._heads, start, count)
        binding.bind_ortvalue_input("at", self._value(at))
        # Past and present are the same buffer: only the rows are written.
        for index, (value, row) in enumerate(zip(self._slots[slot], rows, strict=True)):
            binding.bind_ortvalue_input(f"cache.{index}", value)
            binding.bind_ortvalue_input(f"rows.{index}", row)
            binding.bind_ortvalue_output(f"written.{index}", value)
        run_bound(self._writer, binding)


def _names(part: str, count: int) -> list[str]:
    return [f"{part}.{index}" for index in range(count)]


def _indices(heads: int, start: int, count: int) -> npt.NDArray[np.int64]:
    """Indices of new rows in a cache, `[1, heads, count, 3]`."""
    head, position = np.indices((heads, count))
    return np.stack([np.zeros_like(head), head, position + start], axis=-1).astype(np.int64)[None]


# cache ─┐
# at ────┼─ ScatterND ─▶ written        once per key and value of each layer
# rows ──┘
def _writer(count: int, heads: int, head_dim: int, element: int) -> bytes:
    cache, rows = (1, heads, "capacity", head_dim), (1, heads, "rows", head_dim)
    parts = list(zip(*(_names(part, count) for part in ("cache", "rows", "written")), strict=True))
    return encode_model(
        [Node("ScatterND", [past, "at", new], [written]) for past, new, written in parts],
        [
            Value("at", INT64, (1, heads, "rows", 3)),
            *(Value(past, element, cache) for past, _, _ in parts),
            *(Value(new, element, rows) for _, new, _ in parts),
        ],
        [Value(written, element, cache) for _, _, written in parts],
        opset=_OPSET,
        ir_version=_IR_VERSION,
    )


# cache ─── Slice start:stop ─▶ rows
def _reader(count: int, heads: int, head_dim: int, element: int) -> bytes:
    parts = list(zip(_names("cache", count), _names("rows", count), strict=True))
    return encode_model(
        [Node("Slice", [past, "start", "stop", "axis"], [rows]) for past, rows in parts],
        [
            *(Value(name, INT64, (1,)) for name in ("start", "stop", "axis")),
            *(Value(past, element, (1, heads, "capacity", head_dim)) for past, _ in parts),
        ],
        [Value(rows, element, (1, heads, "rows", head_dim)) for _, rows in parts],
        opset=_OPSET,
        ir_version=_IR_VERSION,
    )
