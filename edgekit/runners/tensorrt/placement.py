"""Decides where the caches of sequence slots lie in a pool of positions; `kv_arena.py` moves them there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Place", "packed", "placed", "runs"]


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a slot.

    Attributes:
        offset: Position in the pool at which it begins.
        stride: Positions that it has: those from one head to the next.
    """

    offset: int
    stride: int

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.offset + self.stride

    def overlaps(self, other: Place) -> bool:
        """Whether the two share a position."""
        return self.offset < other.end and other.offset < self.end


def placed(places: Mapping[int, Place], slot: int, stride: int, size: int) -> dict[int, Place]:
    """Return the places with a new one for a slot, of `stride` positions.

    Other slots stay where they are if that leaves a gap for it; else all are packed.

    Args:
        places: Places by slot.
        slot: The slot; it may have a smaller place.
        stride: Positions that it needs.
        size: Positions of the pool. It has room for all slots.
    """
    others = {number: place for number, place in places.items() if number != slot}
    offset = 0
    for place in sorted(others.values(), key=lambda place: place.offset):
        if place.offset - offset >= stride:
            break
        offset = place.end
    if offset + stride <= size:
        return {**others, slot: Place(offset, stride)}
    return packed({**others, slot: Place(0, stride)}, [])


def packed(places: Mapping[int, Place], first: Sequence[int]) -> dict[int, Place]:
    """Return places without gaps: slots of one stride lie side by side, and of those, the slots in `first` first."""
    order = sorted(places, key=lambda slot: (-places[slot].stride, slot not in first, slot))
    result: dict[int, Place] = {}
    offset = 0
    for slot in order:
        result[slot] = Place(offset, places[slot].stride)
        offset += places[slot].stride
    return result


def runs(places: Mapping[int, Place], slots: Sequence[int], longest: int) -> list[list[int]]:
    """Divide slots into runs of neighbours with the same stride, which can be read as one batch.

    Args:
        places: Places by slot.
        slots: The slots.
        longest: Maximum slots in a run.
    """
    found: list[list[int]] = []
    for slot in sorted(slots, key=lambda slot: places[slot].offset):
        place = places[slot]
        last = places[found[-1][-1]] if found else None
        if last is not None and len(found[-1]) < longest and (last.end, last.stride) == (place.offset, place.stride):
            found[-1].append(slot)
        else:
            found.append([slot])
    return found
