"""Memory of one execution: the inputs that the CPU writes, the values between engines, new KV rows, and the logits."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.runners.cuda.driver import Device
from edgekit.runners.cuda.memory import DeviceMemory, SharedBuffer, aligned
from edgekit.runners.cuda.stream import Stream
from edgekit.runners.masks import PADDING, Masks
from edgekit.runners.slots import FloatArray, TokenArray
from edgekit.runners.tensorrt.tensors import EngineTensors, present_of

__all__ = ["StepBuffers", "buffer_bytes"]

_INT64 = 8
_F32 = 4


def buffer_bytes(tensors: EngineTensors, *, capacity: int, batch: int, chunk: int) -> int:
    """Return the GPU's memory that `StepBuffers` takes at most: when a chunk's logits are all wanted."""
    return (
        sum(_inputs(tensors, capacity, batch, chunk).values())
        + sum(_between(tensors, max(batch, chunk)).values())
        + aligned(2 * len(tensors.caches) * _INT64)
        + (batch + chunk) * aligned(tensors.vocab_size * _F32)
    )


def _inputs(tensors: EngineTensors, capacity: int, batch: int, chunk: int) -> dict[str, int]:
    """Bytes of each input that the CPU writes."""
    rows = max(batch, chunk)
    # In `portable`, masks have a column for each new token besides.
    columns = max(batch * (capacity + 1), chunk * (capacity + chunk)) * tensors.dtype.itemsize
    sizes = {
        "input_ids": rows * _INT64,
        "position_ids": rows * _INT64,
        "write_indices": batch * _INT64,
        "logits_index": rows * _INT64,
        **dict.fromkeys(tensors.masks, columns),
    }
    return {name: aligned(size) for name, size in sizes.items()}


def _between(tensors: EngineTensors, rows: int) -> dict[str, int]:
    """Bytes of each value between engines, and of the new KV rows."""
    sizes = {name: aligned(rows * size) for name, size in tensors.boundaries.items()}
    if not tensors.in_place:
        sizes |= dict.fromkeys(map(present_of, tensors.caches), aligned(rows * tensors.heads * tensors.row_bytes))
    return sizes


class StepBuffers:
    """Inputs and outputs of the engines, at addresses that never change, but for the logits of chunks.

    Args:
        device: The GPU.
        stream: Everything runs on it.
        tensors: The engines' inputs and outputs.
        masks: Makes the masks.
        caches: Addresses of the regions of the KV cache.
        capacity: Maximum positions of a slot.
        batch: Maximum sequences of an execution.
        chunk: Maximum tokens of a sequence in an execution.

    Attributes:
        addresses: Of every input and output but the logits and the KV cache.
        starts: Address of the first new position of each sequence.
        sources: Address of the addresses of the new KV rows.
        caches: Address of the addresses of the KV cache's regions.
    """

    def __init__(
        self,
        device: Device,
        stream: Stream,
        tensors: EngineTensors,
        masks: Masks,
        *,
        caches: Sequence[int],
        capacity: int,
        batch: int,
        chunk: int,
    ) -> None:
        self._device, self._stream, self._tensors, self._masks = device, stream, tensors, masks
        self._starts: dict[str, int] = {}
        total = 0
        for name, size in _inputs(tensors, capacity, batch, chunk).items():
            self._starts[name] = total
            total += size
        between = _between(tensors, max(batch, chunk))
        count = len(tensors.caches)
        with contextlib.ExitStack() as opened:
            self._inputs = opened.enter_context(contextlib.closing(SharedBuffer(device, total)))
            self._between = opened.enter_context(contextlib.closing(DeviceMemory(device, sum(between.values()))))
            self._tables = opened.enter_context(contextlib.closing(SharedBuffer(device, 2 * count * _INT64)))
            self._decoded = opened.enter_context(
                contextlib.closing(SharedBuffer(device, batch * tensors.vocab_size * _F32))
            )
            self._chunk_logits = SharedBuffer(device, tensors.vocab_size * _F32)
            opened.pop_all()

        self.addresses = {name: self._inputs.address + start for name, start in self._starts.items()}
        self.starts = self.addresses["write_indices"]
        address = self._between.address
        for name, size in between.items():
            self.addresses[name] = address
            address += size
        table = self._tables.view(0, (2, count), np.uint64)
        if not tensors.in_place:
            table[0] = [self.addresses[present_of(name)] for name in tensors.caches]
        table[1] = caches
        self._tables.upload(stream, 0, self._tables.size)
        self.sources, self.caches = self._tables.address, self._tables.address + count * _INT64

    @property
    def size(self) -> int:
        """Bytes of the GPU's memory."""
        return sum(part.size for part in self._parts())

    def fill(
        self, tokens: Sequence[TokenArray], lengths: Sequence[int], stride: int, *, every_row: bool
    ) -> dict[str, tuple[int, ...]]:
        """Write the inputs; work that reads them must have ended.

        Args:
            tokens: New tokens of each sequence, as many for each.
            lengths: Tokens in the cache of each.
            stride: Positions of the cache that the engines read.
            every_row: Return logits for every token; else for the last one.

        Returns:
            The shape of each input but the KV cache.
        """
        batch, count = len(tokens), tokens[0].size
        rows = np.arange(count) if every_row else np.array([count - 1])
        shapes = {
            "input_ids": (batch, count),
            "position_ids": (batch, count),
            "write_indices": (batch,),
            "logits_index": (rows.size,),
            **dict.fromkeys(self._tensors.masks, (batch, 1, count, self._columns(stride, count))),
        }
        views = {name: self._view(name, shape) for name, shape in shapes.items()}
        views["logits_index"][:] = rows
        for index, (ids, length) in enumerate(zip(tokens, lengths, strict=True)):
            views["input_ids"][index] = ids
            views["position_ids"][index] = np.arange(length, length + count)
            views["write_indices"][index] = length
            columns = self._positions(stride, length, count)
            for name, mask in self._masks.step(length, count, columns).items():
                views[name][index] = mask[0]
        return shapes

    def upload(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Enqueue the copy of the inputs to the GPU, where it is another memory."""
        for name, shape in shapes.items():
            self._inputs.upload(self._stream, self._starts[name], prod(shape) * self._item(name))

    def logits_address(self, batch: int, rows: int, *, decoding: bool) -> int:
        """Return the address for logits of `[batch, rows, vocab]`; in decoding, it is always the same."""
        if decoding:
            return self._decoded.address
        size = batch * rows * self._tensors.vocab_size * _F32
        if size > self._chunk_logits.size:
            larger = SharedBuffer(self._device, size)
            self._chunk_logits.close()
            self._chunk_logits = larger
        return self._chunk_logits.address

    def download(self, batch: int, rows: int, *, decoding: bool) -> None:
        """Enqueue the copy of the logits from the GPU, where it is another memory."""
        buffer = self._decoded if decoding else self._chunk_logits
        buffer.download(self._stream, 0, batch * rows * self._tensors.vocab_size * _F32)

    def logits(self, batch: int, rows: int, *, decoding: bool) -> FloatArray:
        """Return a copy of the logits `[batch, rows, vocab]`; the stream must have been synchronized."""
        buffer = self._decoded if decoding else self._chunk_logits
        logits: FloatArray = buffer.view(0, (batch, rows, self._tensors.vocab_size), np.float32).copy()
        return logits

    def close(self) -> None:
        """Free the memory."""
        for part in self._parts():
            part.close()

    def _parts(self) -> tuple[SharedBuffer | DeviceMemory, ...]:
        return self._inputs, self._between, self._tables, self._decoded, self._chunk_logits

    def _columns(self, stride: int, count: int) -> int:
        return stride if self._tensors.in_place else stride + count

    def _positions(self, stride: int, length: int, count: int) -> npt.NDArray[np.int64]:
        """Position of the key in each column of the masks."""
        columns = np.arange(self._columns(stride, count))
        if self._tensors.in_place:
            columns[length + count :] = PADDING
        else:
            columns[length:stride] = PADDING
            columns[stride:] = np.arange(length, length + count)
        return columns

    def _item(self, name: str) -> int:
        return self._tensors.dtype.itemsize if name in self._tensors.masks else _INT64

    def _view(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        dtype = self._tensors.dtype if name in self._tensors.masks else np.dtype(np.int64)
        return self._inputs.view(self._starts[name], shape, dtype)
