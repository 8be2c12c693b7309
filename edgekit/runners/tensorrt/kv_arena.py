"""KV cache of all sequence slots in one piece of the GPU's memory, allocated once.

Every layer's keys and values have a region that is a pool of positions; a slot has the same place in each. A place is
as long as the slot's length bucket (`buckets.py`), so that attention reads at most twice the tokens held, and a slot is
moved when it outgrows its place. The pool may be smaller than all slots at full length: who fills the slots keeps count
(`Limits.kv_pool`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.errors import RunnerError
from edgekit.runners.buckets import KvPool
from edgekit.runners.cuda.driver import Device
from edgekit.runners.cuda.memory import ALIGNMENT, DeviceMemory
from edgekit.runners.cuda.stream import Stream
from edgekit.runners.tensorrt.placement import Place, packed, placed, runs

__all__ = ["KvArena"]


class KvArena:
    """Keys and values of every layer, and the number of tokens in each slot.

    Args:
        device: The GPU.
        stream: Everything runs on it.
        tensors: Number of regions: two per layer.
        slots: Number of sequence slots.
        heads: KV heads.
        row_bytes: Bytes of one position of one head.
        capacity: Maximum positions of a slot.
        positions: Positions that all slots share; None is enough for all of them at full length.
        block: The engines take a cache of any number of blocks of so many positions, and a slot has the length of its
            bucket; None if they take exactly `capacity` positions.

    Attributes:
        pool: The positions, and what a slot takes of them. Both are rounded down to whole blocks at aligned addresses,
            and a slot cannot be longer than the pool.
        lengths: Tokens in each slot.
        bytes_per_token: KV cache bytes of one token.
        size: Bytes of the allocation.

    Raises:
        RunnerError: There is not enough memory.
    """

    def __init__(
        self,
        device: Device,
        stream: Stream,
        *,
        tensors: int,
        slots: int,
        heads: int,
        row_bytes: int,
        capacity: int,
        block: int | None,
        positions: int | None = None,
    ) -> None:
        self._stream = stream
        self._position = heads * row_bytes
        self._heads, self._row = heads, row_bytes
        # Every place begins at an aligned address, because its length is a multiple of this.
        step = math.lcm(ALIGNMENT // math.gcd(ALIGNMENT, self._position), block or 1)
        whole = min(capacity, capacity if positions is None else positions) // step * step
        if not whole or (block is None and whole != capacity):
            raise RunnerError(f"a KV cache of {capacity} positions cannot be aligned", hint=f"use a multiple of {step}")
        shared = min(slots * whole, slots * whole if positions is None else positions // step * step)
        self.pool = KvPool(shared, whole, bucketed=block is not None, allocated=True)
        self._region = shared * self._position
        # One region more, for moves to places that overlap the old ones.
        self._memory = DeviceMemory(device, (tensors + 1) * self._region)
        self.size = self._memory.size
        # Unused positions are masked, but a NaN in one of them would still spread.
        stream.zero(self._memory.address, self._memory.size)
        stream.synchronize()
        self._tensors = tensors
        self._places: dict[int, Place] = {}
        self.lengths = [0] * slots
        self.bytes_per_token = tensors * self._position

    def place(self, slot: int) -> Place:
        """Return the place of a slot for which room was made."""
        return self._places[slot]

    def base(self, tensor: int) -> int:
        """Return the address of a region."""
        return self._memory.address + tensor * self._region

    def offset_bytes(self, place: Place) -> int:
        """Return the bytes from the beginning of a region to a place."""
        return place.offset * self._position

    def reserve(self, tokens: Mapping[int, int]) -> None:
        """Make room for so many tokens in each of some slots; slots may move.

        Raises:
            RunnerError: The pool has too few positions; every slot is as before.
        """
        places = self._places
        wanted = {slot: self.pool.taken(count) for slot, count in tokens.items()}
        wanted = {slot: size for slot, size in wanted.items() if slot not in places or places[slot].stride < size}
        if not wanted:
            return
        kept = {slot: place for slot, place in places.items() if slot not in wanted}
        if sum(place.stride for place in kept.values()) + sum(wanted.values()) > self.pool.positions:
            # A failed step or a truncation may have left places that are longer than their tokens need.
            held = {slot: self.pool.taken(max(self.lengths[slot], tokens.get(slot, 0))) for slot in kept}
            places = packed({slot: Place(0, size) for slot, size in {**held, **wanted}.items() if size}, [])
            if max((place.end for place in places.values()), default=0) > self.pool.positions:
                raise RunnerError(f"the KV cache is full: it has {self.pool.positions} positions for all sequences")
        else:
            for slot, size in wanted.items():
                places = placed(places, slot, size, self.pool.positions)
        self._move(places)

    def runs(self, slots: Sequence[int], longest: int) -> list[list[int]]:
        """Divide slots into runs that can be read as one batch, of at most `longest`."""
        return runs(self._places, slots, longest)

    def fewest_runs(self, slots: Sequence[int], longest: int) -> int:
        """Return the number of runs that `gather` would make of slots."""
        return len(runs(packed(self._places, slots), slots, longest))

    def gather(self, slots: Sequence[int]) -> None:
        """Move slots so that those of the same stride among the given ones lie side by side."""
        self._move(packed(self._places, slots))

    def release(self, slot: int) -> None:
        """Empty a slot and give its place up."""
        self.lengths[slot] = 0
        self._places.pop(slot, None)

    def read(self, slot: int, start: int, stop: int) -> bytes:
        """Copy positions `start:stop`, as `[tensors, heads, positions, row]`."""
        if start == stop:
            return b""
        place, width = self._places[slot], (stop - start) * self._row
        data = np.empty((self._tensors, self._heads, width), np.uint8)
        for tensor in range(self._tensors):
            self._stream.read_rows(
                data[tensor].ctypes.data,
                self._address(tensor, place) + start * self._row,
                rows=self._heads,
                row_bytes=width,
                target_stride=width,
                source_stride=place.stride * self._row,
            )
        self._stream.synchronize()
        return data.tobytes()

    def write(self, slot: int, data: memoryview) -> None:
        """Append positions, in the layout of `read`."""
        start, count = self.lengths[slot], data.nbytes // self.bytes_per_token
        self.reserve({slot: start + count})
        place, width = self._places[slot], count * self._row
        given = np.frombuffer(data, np.uint8).reshape(self._tensors, self._heads, width)
        for tensor in range(self._tensors):
            self._stream.write_rows(
                self._address(tensor, place) + start * self._row,
                given[tensor].ctypes.data,
                rows=self._heads,
                row_bytes=width,
                target_stride=place.stride * self._row,
                source_stride=width,
            )
        # `data` may be gone afterwards.
        self._stream.synchronize()
        self.lengths[slot] = start + count

    def close(self) -> None:
        """Free the memory."""
        self._memory.close()

    def _address(self, tensor: int, place: Place) -> int:
        return self.base(tensor) + self.offset_bytes(place)

    def _move(self, places: dict[int, Place]) -> None:
        """Copy the tokens of every slot whose place changes."""
        moved = {
            slot: (self._places[slot], place)
            for slot, place in places.items()
            if slot in self._places and self._places[slot] != place and self.lengths[slot]
        }
        overlap = any(new.overlaps(old) for _, new in moved.values() for old, _ in moved.values())
        for tensor in range(self._tensors):
            if not overlap:
                for slot, (old, new) in moved.items():
                    self._copy(slot, tensor, old, tensor, new)
                continue
            spare = self._tensors
            for slot, (old, new) in moved.items():
                self._copy(slot, tensor, old, spare, new)
            for slot, (_, new) in moved.items():
                self._copy(slot, spare, new, tensor, new)
        if moved:
            # The CPU writes the inputs of the step next, which it must not do on a Jetson while the GPU works.
            self._stream.synchronize()
        self._places = places

    def _copy(self, slot: int, source: int, old: Place, target: int, new: Place) -> None:
        self._stream.copy_rows(
            self._address(target, new),
            self._address(source, old),
            rows=self._heads,
            row_bytes=self.lengths[slot] * self._row,
            target_stride=new.stride * self._row,
            source_stride=old.stride * self._row,
        )
